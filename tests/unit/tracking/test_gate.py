"""The gate's rules, each on made-up results where the answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_release import evaluation, small_release

from hepalign.errors import BadInputError
from hepalign.inference.bundle import STAGES
from hepalign.tracking.gate import Policy, judge, nameless, read_policy
from hepalign.tracking.provenance import patient_hash
from hepalign.tracking.release_folder import read_manifest
from hepalign.tracking.releases import build_release

CASES = {f"case-{n}": 2.0 + 0.1 * n for n in range(8)}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("release"))


def results(tmp_path: Path, release: Path, tre_mm: dict[str, float] = CASES, **chosen: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (evaluation(tmp_path, release, tre_mm, **chosen) / "results.json").read_text(encoding="utf-8")
    )
    return found


def failed(policy: dict[str, Any], found: dict[str, Any], manifest: Any = None, champion: Any = None) -> list[str]:
    rules = Policy.model_validate({"min_cases": 1, "thresholds": []} | policy)
    manifest = {"training_data": {"patients": []}} if manifest is None else manifest
    before = None if champion is None else nameless(champion)
    return [check.rule for check in judge(rules, found, manifest, before) if not check.passed]


def threshold(**bound: float) -> dict[str, Any]:
    return {"thresholds": [{"pair": "pCT-iCT", "structure": "liver", "metric": "tre_mm", **bound}]}


def test_thresholds_bound_the_mean(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release)  # mean 2.35
    assert failed(threshold(at_most=2.36), found) == []
    assert failed(threshold(at_most=2.34), found) == ["pCT-iCT liver tre_mm ≤ 2.34"]
    assert failed(threshold(at_least=2.36), found) == ["pCT-iCT liver tre_mm ≥ 2.36"]


def test_a_mean_over_too_few_cases_does_not_pass(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release)
    next(row for row in found["table"] if row["metric"] == "tre_mm")["n"] = 5
    policy = {"min_cases": 6} | threshold(at_most=2.36)
    (check,) = (c for c in judge(Policy.model_validate(policy), found, {}, None) if "tre_mm" in c.rule)
    assert (check.passed, check.found) == (False, "2.35 over 5 cases")
    assert failed(threshold(at_most=2.36) | {"min_cases": 5}, found) == []


def test_a_metric_that_was_not_measured_does_not_pass(tmp_path: Path, release: Path) -> None:
    missing = {"thresholds": [{"pair": "pMR-pCT", "structure": "liver", "metric": "dice", "at_least": 0.0}]}
    assert failed(missing, results(tmp_path, release))


def test_too_few_cases_another_split_or_cohort_are_refused(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release)
    assert failed({"min_cases": 8}, found) == []
    assert failed({"min_cases": 9}, found) == ["at least 9 cases"]
    assert failed({"split": "val"}, found) == ["evaluated on the val split"]
    assert failed({"cohort": "other"}, found) == ["evaluated on cohort other"]


def test_failed_cases_count(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release)
    found["cases"][0]["status"] = "failed"
    assert failed({}, found) == ["at most 0% failed"]
    assert failed({"max_failed_share": 0.2}, found) == []


def test_a_patient_seen_in_training_is_a_leak(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release, patient="somebody")
    seen = {"training_data": {"patients": [patient_hash("somebody")]}}
    assert failed({}, found, seen) == ["no test patient in training"]
    assert failed({"check_leaks": False}, found, seen) == []
    assert failed({}, found, {"training_data": {}}) == ["no test patient in training"]


def test_a_training_that_does_not_tell_its_patients_leaves_the_release_without_any(tmp_path: Path) -> None:
    """With those of the other trainings alone a leak of this one would pass."""
    trainings = {stage: small_release(tmp_path).parent / "trainings" / stage for stage in STAGES}
    (trainings["inpainting"] / "training.json").unlink()
    made = build_release(trainings, tmp_path / "untold")
    manifest = read_manifest(made)
    assert manifest["training_data"].keys() == {"cohorts"}
    assert failed({}, results(tmp_path, made), manifest) == ["no test patient in training"]
    assert "whom the networks have seen is unknown" in (made / "model_card.md").read_text(encoding="utf-8")


def regression(**rule: float) -> dict[str, Any]:
    metric = {"pair": "pCT-iCT", "structure": "liver", "metric": "tre_mm", "larger_is_better": False}
    return {"no_regression": [{**metric, "tolerance": 0.5, **rule}]}


@pytest.mark.parametrize(
    ("worsening_mm", "refused"),
    [(0.0, False), (-1.0, False), (0.6, True), (0.1, True)],
    ids=["equal", "better", "beyond the tolerance", "little but every time"],
)
def test_no_regression_is_a_paired_test(tmp_path: Path, release: Path, worsening_mm: float, refused: bool) -> None:
    champion = results(tmp_path / "champion", release)
    candidate = {case: value + worsening_mm for case, value in CASES.items()}
    assert bool(failed(regression(), results(tmp_path, release, candidate), champion=champion)) == refused


def test_noise_around_the_champion_passes(tmp_path: Path, release: Path) -> None:
    champion = results(tmp_path / "champion", release)
    candidate = {case: value + (0.1 if n % 2 else -0.1) for n, (case, value) in enumerate(CASES.items())}
    assert failed(regression(), results(tmp_path, release, candidate), champion=champion) == []


def test_a_champion_judged_on_other_data_cannot_be_compared(tmp_path: Path, release: Path) -> None:
    champion = results(tmp_path / "champion", release)
    champion["provenance"]["cohort"]["digest"] = "d" * 64
    assert failed(regression(), results(tmp_path, release), champion=champion)


def test_must_beat_names_the_pair(tmp_path: Path, release: Path) -> None:
    found = results(tmp_path, release)
    row = next(row for row in found["table"] if row["metric"] == "tre_mm")
    found["table"].append(row | {"method": "identity", "mean": 2.0})
    assert failed({"must_beat": ["identity"]}, found) == ["liver error below that of identity"]
    found["table"][-1]["mean"] = 9.0
    assert failed({"must_beat": ["identity"]}, found) == []
    row["mean"] = float("nan")
    assert failed({"must_beat": ["identity"]}, found) == ["liver error below that of identity"]


def test_a_method_that_was_not_evaluated_is_not_beaten(tmp_path: Path, release: Path) -> None:
    assert failed({"must_beat": ["identity"]}, results(tmp_path, release)) == ["liver error below that of identity"]


@pytest.mark.parametrize("text", ["min_cases: 0\nthresholds: []", "thresholds: []", "min_cases: 1\nwat: 2", "- 1"])
def test_a_policy_that_is_off_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError) as caught:
        read_policy(tmp_path / "policy.yaml")
    assert caught.value.code == "promotion_policy"
