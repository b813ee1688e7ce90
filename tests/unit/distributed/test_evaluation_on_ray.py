"""An evaluation over Ray's tasks says what the same evaluation in this process says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hepalign.cases.sources.generate import phantom_cohort
from hepalign.distributed.evaluation import evaluate_release
from hepalign.inference.untrained import make_untrained_bundle

# They say how the run went on this machine, not what came out.
OF_THE_RUN = {"seconds", "peak_memory_mb", "steps"}


@pytest.mark.slow
def test_spread_over_ray_equals_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    cohort, release = tmp_path / "cohort", tmp_path / "release"
    phantom_cohort(cohort, cases=2, seed=5, shape=(48, 40, 32), spacing_mm=7.0, split="test", workers=1)
    make_untrained_bundle(release)

    def rows(workers: int) -> list[dict[str, Any]]:
        found = evaluate_release(
            str(cohort), str(release), tmp_path / f"out-{workers}", baselines=["greedy-nmi"], ablate={},
            workers=workers, threads=1, both_ways=False,
        )  # fmt: skip
        assert not found.failures()
        return [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in found.results["cases"]]

    assert rows(0) == rows(2)


@pytest.mark.slow
def test_rerun_without_cache_equals_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    cohort, release = tmp_path / "cohort", tmp_path / "release"
    phantom_cohort(cohort, cases=1, seed=6, shape=(48, 40, 32), spacing_mm=7.0, split="test", workers=1)
    make_untrained_bundle(release)
    peers = ["ants-rigid", "ants-syn", "greedy-nmi", "greedy-wncc", "elastix", "convexadam", "flirt-cr", "direct-mi"]

    def run(*, fresh: bool) -> dict[str, Any]:
        found = evaluate_release(
            str(cohort), str(release), tmp_path / "out", baselines=peers, ablate={}, workers=0, threads=1,
            both_ways=False, fresh=fresh,
        )  # fmt: skip
        assert not found.failures()
        return dict(found.results)

    assert run(fresh=False)["rerun"] is None
    rerun = run(fresh=True)["rerun"]
    assert rerun["units"] == len(peers) + 4  # identity, the chain of both greedies, both engines
    assert rerun["within"]
    assert {row["largest"] for row in rerun["differences"]} == {0.0}
