"""Promotion, rollback and what refuses them; faults 69, 70, 82."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_release import evaluation, small_release

from hepalign.errors import BadInputError, UsageError, WorkFailedError
from hepalign.inference.bundle import STAGES, build_bundle, load_bundle
from hepalign.tracking import ledger
from hepalign.tracking.gate import nameless
from hepalign.tracking.promotion import history, promote, rollback, verify_promotion
from hepalign.tracking.registry import client
from hepalign.tracking.release_folder import release_sha256
from hepalign.tracking.releases import list_releases, register_release, show_release
from hepalign.tracking.resolution import resolve_release

GOOD = {f"case-{n}": 2.0 + 0.1 * n for n in range(8)}
WORSE = {case: value + 1.0 for case, value in GOOD.items()}
FACTS = {"release_sha256": "a" * 64, "gate_sha256": "", "reason": "x", "who": "y"}
POLICY = """
split: test
min_cases: 6
thresholds:
  - {pair: pCT-iCT, structure: liver, metric: tre_mm, at_most: 5.0}
no_regression:
  - {pair: pCT-iCT, structure: liver, metric: tre_mm, larger_is_better: false, tolerance: 0.5}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


def put_forward(folder: Path, policy: Path, seed: int, tre_mm: dict[str, float] = GOOD) -> dict[str, object]:
    release = small_release(folder / str(seed), seed)
    judged = evaluation(folder / str(seed) / "evaluation", release, tre_mm)
    return promote(str(release), evaluation=judged, policy=policy, reason=f"release {seed}", who="owner")


def test_promote_serve_roll_back(mlflow: str, tmp_path: Path, policy: Path) -> None:
    first = put_forward(tmp_path, policy, 1)
    assert (first["entry"], first["version"], first["who"]) == (1, "1", "owner")
    second = put_forward(tmp_path, policy, 2)
    champion = resolve_release("models:/hepalign@champion", cache=tmp_path / "serving", verify=True)
    assert load_bundle(champion).manifest["version"] == "2"
    assert json.loads((champion / "gate.json").read_text(encoding="utf-8"))["passed"]

    back = rollback(reason="2 drifts")
    assert (back["entry"], back["version"], back["action"]) == (3, first["version"], "rollback")
    assert load_bundle(resolve_release("models:/hepalign@champion")).manifest["version"] == "1"
    assert [row["reason"] for row in history()] == ["2 drifts", "release 2", "release 1"]
    assert verify_promotion("1", str(first["release_sha256"]))["entry"] == 1
    with pytest.raises(WorkFailedError) as caught:
        rollback(reason="again")
    assert caught.value.code == "nothing_before"
    with pytest.raises(WorkFailedError):
        verify_promotion("2", str(second["release_sha256"]))


def test_a_champion_promoted_again_does_not_stand_before_itself(mlflow: str, tmp_path: Path, policy: Path) -> None:
    for seed in (1, 2, 2):
        latest = put_forward(tmp_path, policy, seed)
    assert verify_promotion("2", str(latest["release_sha256"]))["entry"] == 3
    assert rollback(reason="2 drifts")["version"] == "1"


def test_a_history_with_a_rollback_to_the_release_that_stood_still_ends_where_it_ended() -> None:
    def entry(number: int, action: str, version: str) -> ledger.Entry:
        return ledger.Entry(number, action, version, version * 64, "", "x", "y", "", "")

    told = [entry(1, "promote", "1"), entry(2, "promote", "2"), entry(3, "promote", "2"), entry(4, "rollback", "2")]
    assert [found.version for found in ledger.champions(told)] == ["1", "2"]
    told.append(entry(5, "rollback", "1"))
    assert [found.version for found in ledger.champions(told)] == ["1"]


def test_what_mlflow_keeps_of_an_evaluation_names_nobody(mlflow: str, tmp_path: Path, policy: Path) -> None:
    """Neither in its database nor in its files: cases and patients are hashes there."""
    release = small_release(tmp_path / "1", 1, patients=("doe-trained",))
    judged = evaluation(tmp_path / "e", release, GOOD, patient="doe-{}")
    promote(str(release), evaluation=judged, policy=policy, reason="good", who="owner")
    stored = [path for path in (tmp_path / "mlflow").rglob("*") if path.is_file() and "cache" not in path.parts]
    assert any(path.name == "results.json" for path in stored)
    for path in stored:
        content = path.read_bytes()
        assert b"doe-" not in content, path.name
        assert b"case-" not in content, path.name


def test_an_alias_moved_by_hand_is_refused(mlflow: str, tmp_path: Path, policy: Path) -> None:
    put_forward(tmp_path, policy, 1)
    version = register_release(small_release(tmp_path / "2", 2))
    client().set_registered_model_alias("hepalign", "champion", version)
    with pytest.raises(WorkFailedError, match="by hand") as caught:
        resolve_release("models:/hepalign@champion")
    assert caught.value.code == "unpromoted_champion"
    # naming the version does not get round the gate either
    with pytest.raises(WorkFailedError) as caught:
        resolve_release(f"models:/hepalign/{version}", cache=tmp_path / "serving", verify=True)
    assert caught.value.code == "unpromoted_release"


def test_a_folder_is_served_only_with_its_own_gate_report(mlflow: str, tmp_path: Path, policy: Path) -> None:
    release = small_release(tmp_path / "1", 1)
    with pytest.raises(WorkFailedError) as caught:
        resolve_release(str(release), verify=True)
    assert caught.value.code == "unpromoted_release"
    promote(str(release), evaluation=evaluation(tmp_path / "e", release, GOOD), policy=policy, reason="good")
    assert resolve_release(str(release), verify=True) == release
    other = small_release(tmp_path / "2", 2)
    (other / "gate.json").write_bytes((release / "gate.json").read_bytes())
    with pytest.raises(WorkFailedError):
        resolve_release(str(other), verify=True)


def test_the_gate_refuses_a_regression_and_says_so(mlflow: str, tmp_path: Path, policy: Path) -> None:
    put_forward(tmp_path, policy, 1)
    with pytest.raises(WorkFailedError, match="not behind the champion") as caught:
        put_forward(tmp_path, policy, 2, WORSE)
    assert caught.value.code == "gate_failed"
    assert [row["gate"] for row in list_releases()] == ["refused", "passed"]
    assert show_release("models:/hepalign/2")["gate"]["passed"] is False
    assert show_release("models:/hepalign@champion")["version"] == "1"


def test_a_champion_judged_again_in_vain_keeps_what_it_is_served_and_compared_with(
    mlflow: str, tmp_path: Path, policy: Path
) -> None:
    put_forward(tmp_path, policy, 1)
    with pytest.raises(WorkFailedError):
        put_forward(tmp_path, policy, 1, WORSE)
    release = tmp_path / "1/release"
    assert resolve_release(str(release), verify=True) == release
    assert [row["gate"] for row in list_releases()] == ["passed"]
    # the next one is held against the evaluation that made the champion one
    with pytest.raises(WorkFailedError, match="not behind the champion"):
        put_forward(tmp_path, policy, 2, WORSE)


def with_champion(folder: Path, tre_mm: dict[str, float], digests: object, *, filed: bool) -> None:
    """Put rows of an ablation named champion into an evaluation of another cohort; `filed` as MLflow keeps it."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = [row | {"method": "champion", "liver_tre_mm": tre_mm[row["case"]]} for row in results["cases"]]
    results["cases"] += rows
    results["provenance"] |= {"ablations": {"champion": digests}}
    results["provenance"]["cohort"]["digest"] = "d" * 64
    told = nameless(results) if filed else results
    (folder / "results.json").write_text(json.dumps(told), encoding="utf-8")


@pytest.mark.parametrize("filed", [False, True])
@pytest.mark.parametrize("own", [True, False], ids=["the champion's rows", "another release's rows"])
def test_an_ablation_named_champion_counts_only_when_it_is_the_champion(
    mlflow: str, tmp_path: Path, policy: Path, own: bool, filed: bool
) -> None:
    put_forward(tmp_path, policy, 1)
    second = small_release(tmp_path / "2", 2)
    judged = evaluation(tmp_path / "e", second, WORSE)
    digests = dict(load_bundle(tmp_path / "1/release" if own else second).digests)
    with_champion(judged, WORSE, digests, filed=filed)
    if own:
        assert promote(str(second), evaluation=judged, policy=policy, reason="as good")["version"] == "2"
        return
    with pytest.raises(WorkFailedError, match="the champion was not evaluated on this cohort"):
        promote(str(second), evaluation=judged, policy=policy, reason="as good")


def test_promotion_needs_this_releases_evaluation_and_a_reason(mlflow: str, tmp_path: Path, policy: Path) -> None:
    release, other = small_release(tmp_path / "1", 1), small_release(tmp_path / "2", 2)
    judged = evaluation(tmp_path / "e", other, GOOD)
    with pytest.raises(BadInputError) as caught:
        promote(str(release), evaluation=judged, policy=policy, reason="good")
    assert caught.value.code == "evaluation_mismatch"
    # the same weights, read at another voxel size
    described = json.loads((other / "synthesis.json").read_text(encoding="utf-8"))
    described["config"]["spacing_mm"] = 3.5
    parts = tmp_path / "parts"
    shutil.copytree(other, parts)
    (parts / "synthesis.json").write_text(json.dumps(described), encoding="utf-8")
    changed = build_bundle(tmp_path / "3", dict.fromkeys(STAGES, parts), name="hepalign", version="3")
    with pytest.raises(BadInputError, match="evaluates another release"):
        promote(str(changed), evaluation=judged, policy=policy, reason="good")
    with pytest.raises(UsageError):
        promote(str(other), evaluation=judged, policy=policy, reason=" ")
    with pytest.raises(UsageError):
        promote(str(other), evaluation=None, policy=policy, reason="good")
    assert history() == []


def test_fault_70_altered_weights_are_refused_and_the_old_release_stays(
    mlflow: str, tmp_path: Path, policy: Path
) -> None:
    put_forward(tmp_path, policy, 1)
    champion = resolve_release("models:/hepalign@champion")
    weights = champion / "inpainting.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        load_bundle(champion)
    assert caught.value.code == "weights_digest"
    fetched = resolve_release("models:/hepalign@champion", cache=tmp_path / "elsewhere", verify=True)
    assert load_bundle(fetched).manifest["version"] == "1"


def test_fault_69_promotion_fails_cleanly_when_mlflow_is_down(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = small_release(tmp_path / "1", 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(WorkFailedError, match="nothing was changed") as caught:
        promote(str(release), evaluation=evaluation(tmp_path / "e", release, GOOD), policy=policy, reason="good")
    assert caught.value.code == "tracking_unreachable"
    assert not (release / "gate.json").exists()


def test_the_history_outlives_a_deletion_and_shows_tampering(mlflow: str, tmp_path: Path, policy: Path) -> None:
    put_forward(tmp_path, policy, 1)
    put_forward(tmp_path, policy, 2)
    api = client()
    entry = api.get_experiment_by_name("hepalign/history/1")
    last = api.get_experiment_by_name("hepalign/history/2")
    assert entry is not None
    assert last is not None
    api.delete_experiment(last.experiment_id)
    assert [found.entry for found in ledger.entries(api)] == [1, 2]
    api.set_experiment_tag(entry.experiment_id, "who", "somebody else")
    with pytest.raises(WorkFailedError) as caught:
        ledger.entries(api)
    assert caught.value.code == "ledger_broken"


def test_fault_82_of_two_promotions_at_once_one_wins(mlflow: str, tmp_path: Path, policy: Path) -> None:
    """Both read the same history, then both take the next entry: the name can be taken once."""
    api = client()
    for seed in (1, 2):
        register_release(small_release(tmp_path / str(seed), seed))
    seen_by_both = ledger.entries(api)

    def take(version: str) -> ledger.Entry:
        facts = FACTS | {"release_sha256": release_sha256(tmp_path / version / "release")}
        return ledger.append(api, seen_by_both, action="promote", version=version, **facts)

    assert take("1").entry == 1
    with pytest.raises(WorkFailedError, match="somebody else") as caught:
        take("2")
    assert (caught.value.code, caught.value.status) == ("promotion_conflict", 409)
    assert [entry.version for entry in ledger.entries(api)] == ["1"]


def test_an_entry_whose_answer_was_lost_and_that_is_asked_for_again_is_our_own(
    mlflow: str, tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client posts again by itself when the connection broke; the first request may have been done."""
    create = MlflowClient.create_experiment

    def twice(api: MlflowClient, name: str, **words: Any) -> str:
        create(api, name, **words)
        return create(api, name, **words)

    monkeypatch.setattr(MlflowClient, "create_experiment", twice)
    assert ledger.append(client(), [], action="promote", version="1", **FACTS) == ledger.entries(client())[0]


def test_fault_82_a_promotion_overtaken_by_the_next_one_leaves_the_alias_to_that(
    mlflow: str, tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = MlflowClient.set_registered_model_alias

    def overtaken(api: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", setting)
            put_forward(tmp_path, policy, 2)
        setting(api, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", overtaken)
    put_forward(tmp_path, policy, 1)
    assert load_bundle(resolve_release("models:/hepalign@champion")).manifest["version"] == "2"


@pytest.mark.slow
def test_fault_82_many_promotions_at_once_leave_an_unbroken_history(mlflow: str, tmp_path: Path, policy: Path) -> None:
    promoting = []
    for seed in range(3):
        release = small_release(tmp_path / str(seed), seed)
        judged = evaluation(tmp_path / f"e{seed}", release, GOOD)
        register_release(release)
        words = [str(release), "--report", str(judged), "--policy", str(policy), "--reason", "at once"]
        command = [Path(sys.executable).with_name("hepalign"), "release", "promote", *words]
        promoting.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=240)[1] for process in promoting]
    won = [process for process in promoting if process.returncode == 0]
    assert won, said
    lost = [words for process, words in zip(promoting, said, strict=True) if process.returncode]
    assert all("error[promotion_conflict]" in words for words in lost), lost
    assert len(ledger.entries(client())) == len(won)
    assert resolve_release("models:/hepalign@champion")
