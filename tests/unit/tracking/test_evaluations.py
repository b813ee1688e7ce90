"""Evaluations in MLflow: found again by the weights they judged, and without anybody's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_release import evaluation, small_release

from hepalign.errors import UsageError
from hepalign.tracking.evaluations import EXPERIMENT, filed_evaluation, log_evaluation
from hepalign.tracking.promotion import promote
from hepalign.tracking.registry import client

TRE_MM = {f"case-{n}": 2.0 + 0.1 * n for n in range(8)}
POLICY = """
split: test
min_cases: 6
thresholds:
  - {pair: pCT-iCT, structure: liver, metric: tre_mm, at_most: 5.0}
"""


def judged(folder: Path, release: Path) -> Path:
    """An evaluation's folder as `evaluate` leaves it."""
    made = evaluation(folder, release, TRE_MM)
    results = json.loads((made / "results.json").read_text(encoding="utf-8"))
    results["provenance"]["release"]["name"] = "hepalign small"
    (made / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (made / "table2.csv").write_text("pair,structure,metric,method,mean\n", encoding="utf-8")
    (made / "report.html").write_text("<p>case-3</p>", encoding="utf-8")
    return made


@pytest.mark.usefixtures("mlflow")
def test_the_gate_finds_the_newest_evaluation_of_its_weights(tmp_path: Path) -> None:
    release, other = small_release(tmp_path / "a", 1), small_release(tmp_path / "b", 2)
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        promote(str(release), evaluation=None, policy=policy, reason="first")
    assert caught.value.code == "no_evaluation"

    folder = judged(tmp_path / "evaluation", release)
    log_evaluation({"pCT-iCT/liver/tre_mm/proposed-refine": 2.35, "p/CI-iCT/x/nan": float("nan")}, folder)
    (run,) = client().search_runs([client().get_experiment_by_name(EXPERIMENT).experiment_id])  # type: ignore[union-attr]
    assert run.data.metrics == {"pCT-iCT/liver/tre_mm/proposed-refine": 2.35}
    assert run.data.tags["cohort"] == "made-up"

    entry = promote(str(release), evaluation=None, policy=policy, reason="first", who="owner")
    assert entry["version"] == "1"
    with pytest.raises(UsageError) as caught:
        promote(str(other), evaluation=None, policy=policy, reason="second")
    assert caught.value.code == "no_evaluation"


@pytest.mark.usefixtures("mlflow")
def test_what_is_filed_names_no_case_and_no_patient(tmp_path: Path) -> None:
    release = small_release(tmp_path, 1)
    log_evaluation({}, judged(tmp_path / "evaluation", release))
    manifest = json.loads((release / "release.json").read_text(encoding="utf-8"))
    digests = {stage: entry["sha256"] for stage, entry in manifest["networks"].items()}
    with filed_evaluation(digests, "test") as folder:
        names = sorted(path.name for path in folder.iterdir())
        text = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    assert names == ["results.json", "table2.csv"]
    assert "case-3" not in text
    assert "patient-" not in text


def test_an_absent_mlflow_never_stops_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_evaluation({"a": 1.0}, judged(tmp_path / "evaluation", small_release(tmp_path, 1)))
