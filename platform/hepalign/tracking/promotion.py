"""Promotion and rollback of the champion: gated, serialised by the ledger, and on record."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from hepalign.errors import BadInputError, UsageError, WorkFailedError
from hepalign.inference.bundle import config_digest
from hepalign.tracking import gate as gates
from hepalign.tracking import ledger
from hepalign.tracking.address import CHAMPION, MODEL, exists
from hepalign.tracking.evaluations import filed_evaluation
from hepalign.tracking.model_card import CARD_FILE, write_model_card
from hepalign.tracking.registry import client, reachable
from hepalign.tracking.release_folder import GATE_FILE, release_sha256
from hepalign.tracking.releases import register_release
from hepalign.tracking.resolution import resolve_release

POLICY = Path("mlflow/promotion.yaml")
RESULTS_FILE = "results.json"
EVALUATION = f"evaluation/{RESULTS_FILE}"


def promote(
    release: str, *, evaluation: Path | None, reason: str, policy: Path = POLICY, who: str | None = None
) -> dict[str, Any]:
    """Put a release through the gate and make it the champion.

    Args:
        release: as for `resolve_release`; a folder that is not registered yet is registered.
        evaluation: the folder of this release's evaluation (`results.json`); None takes the newest one filed in MLflow.
        reason: why; it stays in the history.
        policy: the gate's rules.
        who: who decides; the account's name unless given.

    Returns:
        The history's entry: `entry`, `version`, `reason`, `who`, `when` and so on.

    Raises:
        UsageError: `no_evaluation`, `no_reason`.
        BadInputError: `evaluation_mismatch` when the evaluation is another release's, `promotion_policy`.
        WorkFailedError: `gate_failed` naming the rules, `promotion_conflict`, `tracking_unreachable`.
    """
    _need_reason(reason)
    rules = gates.read_policy(policy)
    folder = resolve_release(release)
    if evaluation is None:
        with filed_evaluation(_pinned(folder), rules.split) as filed:
            return promote(release, evaluation=filed, reason=reason, policy=policy, who=who)
    results = _results(evaluation, folder)
    version = register_release(folder)
    with reachable("promote"):
        api = client()
        history = _settled_history(api)
        champion = _champion_results(api, history, results)
        checks = gates.judge(rules, results, _json(folder / "release.json"), champion)
        report = gates.report(
            checks,
            release_sha256=release_sha256(folder),
            version=version,
            policy=policy.name,
            cohort=results["provenance"]["cohort"],
            judged=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        # what a release that was promoted is served with, and compared with, stays when it is judged again in vain
        if report["passed"] or release_sha256(folder) not in {entry.release_sha256 for entry in history}:
            _store(api, version, folder, report, evaluation)
        if not report["passed"]:
            failed = "; ".join(f"{check.rule} ({check.found})" for check in checks if not check.passed)
            raise WorkFailedError(f"the gate refuses {folder.name}: {failed}", code="gate_failed")
        entry = ledger.append(
            api, history, action="promote", version=version, release_sha256=release_sha256(folder),
            gate_sha256=_digest(report), reason=reason, who=who,
        )  # fmt: skip
        _settled_history(api)
    return asdict(entry)


def rollback(*, reason: str, who: str | None = None) -> dict[str, Any]:
    """Make the release before the champion the champion again; needs neither data nor the gate.

    Raises:
        WorkFailedError: `nothing_before` when no release was champion before, `promotion_conflict`.
    """
    _need_reason(reason)
    with reachable("roll back"):
        api = client()
        history = _settled_history(api)
        stack = ledger.champions(history)
        if len(stack) < 2:
            raise WorkFailedError("there is no champion before this one to roll back to", code="nothing_before")
        before = stack[-2]
        entry = ledger.append(
            api, history, action="rollback", version=before.version, release_sha256=before.release_sha256,
            gate_sha256=before.gate_sha256, reason=reason, who=who,
        )  # fmt: skip
        _settled_history(api)
    return asdict(entry)


def history() -> list[dict[str, Any]]:
    """Every promotion and rollback, the newest first."""
    if not exists():
        return []
    with reachable("read the history"):
        found = [asdict(entry) for entry in reversed(ledger.entries(client()))]
    return [{key: value for key, value in row.items() if not key.endswith("sha256")} for row in found]


def verify_promotion(version: str, digest: str) -> dict[str, Any]:
    """The record that makes this version champion; serving refuses to switch without it.

    Raises:
        WorkFailedError: `unpromoted_champion`, `ledger_broken`, `tracking_unreachable`.
    """
    with reachable("verify the promotion"):
        return asdict(ledger.verify_champion(client(), version, digest))


def _settled_history(api: MlflowClient) -> list[ledger.Entry]:
    """The history, once the alias is where it ends.

    A promotion may have died before it set the alias, or have been overtaken by the next one; a hand may have moved it.
    """
    found: list[ledger.Entry] = []
    while len(now := ledger.entries(api)) > len(found):
        found = now
        api.set_registered_model_alias(MODEL, CHAMPION, found[-1].version)
    return found


def _results(evaluation: Path, folder: Path) -> dict[str, Any]:
    results = _json(evaluation / RESULTS_FILE)
    try:
        release = results["provenance"]["release"]
        # older evaluations know the weights alone
        evaluated = release["digests"], release.get("config_digests", _pinned_configs(folder))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{evaluation.name} holds no evaluation of a release", code="evaluation_mismatch"
        ) from error
    if evaluated != (_pinned(folder), _pinned_configs(folder)):
        raise BadInputError(
            f"{evaluation.name} evaluates another release than {folder.name}: evaluate this one",
            code="evaluation_mismatch",
        )
    return results


def _pinned(folder: Path) -> dict[str, str]:
    """The digests of a release's weights, stage by stage."""
    return {stage: entry["sha256"] for stage, entry in _json(folder / "release.json")["networks"].items()}


def _pinned_configs(folder: Path) -> dict[str, str]:
    """The digests of what its networks' JSON files say, stage by stage."""
    return {stage: config_digest(_json(folder / f"{stage}.json")) for stage in _pinned(folder)}


def _champion_results(
    api: MlflowClient, history: list[ledger.Entry], results: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The champion's evaluation, nameless; None when there is none yet.

    It comes from this evaluation's own rows where its ablation named champion was of that very release.
    """
    stack = ledger.champions(history)
    if not stack:
        return None
    version = api.get_model_version(MODEL, stack[-1].version)
    with tempfile.TemporaryDirectory() as scratch:
        stored = _json(Path(api.download_artifacts(str(version.run_id), EVALUATION, scratch)))
    if results["provenance"].get("ablations", {}).get(CHAMPION) != stored["provenance"]["release"]["digests"]:
        return stored
    rows = [row | {"method": "proposed-refine"} for row in results["cases"] if row["method"] == CHAMPION]
    return gates.nameless({**results, "cases": rows})


def _store(api: MlflowClient, version: str, folder: Path, report: Mapping[str, Any], evaluation: Path) -> None:
    """Keep the gate's report and what it judged with the release, and beside a local one."""
    (folder / GATE_FILE).write_text(
        json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    run_id = str(api.get_model_version(MODEL, version).run_id)
    write_model_card(folder)
    for name in (GATE_FILE, CARD_FILE):
        if (folder / name).is_file():
            api.log_artifact(run_id, str(folder / name))
    api.log_dict(run_id, gates.nameless(_json(evaluation / RESULTS_FILE)), EVALUATION)
    if (evaluation / "table2.csv").is_file():
        api.log_artifact(run_id, str(evaluation / "table2.csv"), "evaluation")
    api.set_model_version_tag(MODEL, version, "gate", "passed" if report["passed"] else "refused")


def _need_reason(reason: str) -> None:
    if not reason.strip():
        raise UsageError("say why with --reason: it stays in the history", code="no_reason")


def _digest(report: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path.name} is missing or no JSON", code="evaluation_mismatch") from error
    return found
