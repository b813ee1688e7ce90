"""What the demo's cohorts are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepalign.cli.demo.journey import Journey
from hepalign.cli.demo.size import SIZES


@pytest.mark.parametrize("size", list(SIZES))
def test_no_pair_of_the_test_is_moved_as_one_of_the_training(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    seeds: dict[str, set[int]] = {}

    def simulated(out: Path, *, seed: int, cases: int, **_: object) -> None:
        seeds[out.name] = set(range(seed, seed + cases))

    monkeypatch.setattr("hepalign.cases.sources.generate.phantom_cohort", lambda *_, **__: None)
    monkeypatch.setattr("hepalign.cases.sources.generate.simulated_cohort", simulated)
    monkeypatch.setattr("hepalign.image.nifti.read_nifti", lambda path: None)
    monkeypatch.setenv("HEPALIGN_REAL_DATA", str(tmp_path))
    # the journey sets the first and removes the second
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("HEPALIGN_RELEASE", "")
    monkeypatch.chdir(root)
    Journey(tmp_path / "demo", size)._cohorts()
    assert seeds["real-train"]
    assert not seeds["real-train"] & seeds["real-test"]
