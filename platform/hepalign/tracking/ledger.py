"""The history of promotions: an append-only chain of uniquely named MLflow experiments.

MLflow's aliases can be set by two callers at once and both succeed; an experiment's name can be taken once. So entry N
is the experiment `hepalign/history/N`, and taking its name is the compare-and-swap that serialises promotions. Each
entry carries the digest of the one before it.
"""

from __future__ import annotations

import getpass
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from hepalign.errors import WorkFailedError
from hepalign.tracking.address import CHAMPION, MODEL
from hepalign.tracking.registry import artifact_location

PREFIX = f"{MODEL}/history/"
Action = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Entry:
    """One promotion or rollback.

    Args:
        entry: its number, from 1.
        action: what was done.
        version: the model version that became champion.
        release_sha256: of that version's release.json.
        gate_sha256: of the gate report it passed.
        reason: why.
        who: who said so.
        when: ISO time, UTC.
        before_sha256: digest of the entry before; empty for the first.
    """

    entry: int
    action: str
    version: str
    release_sha256: str
    gate_sha256: str
    reason: str
    who: str
    when: str
    before_sha256: str

    def sha256(self) -> str:
        """The digest that the next entry quotes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def entries(mlflow: MlflowClient) -> list[Entry]:
    """All entries, the oldest first.

    Raises:
        WorkFailedError: `ledger_broken` when an entry is missing or was altered.
    """
    found: list[Entry] = []
    token: str | None = None
    while True:
        # a deleted entry still stands: the history is only ever appended to
        page = mlflow.search_experiments(ViewType.ALL, filter_string=f"name LIKE '{PREFIX}%'", page_token=token)
        found += [_parse(experiment.name, experiment.tags) for experiment in page]
        token = page.token
        if not token:
            break
    found.sort(key=lambda entry: entry.entry)
    before = ""
    for number, entry in enumerate(found, start=1):
        if entry.entry != number or entry.before_sha256 != before:
            raise WorkFailedError(
                f"the promotion history is broken at entry {number}: restore the tracking database from its backup",
                code="ledger_broken",
            )
        before = entry.sha256()
    return found


def append(
    mlflow: MlflowClient,
    head: Sequence[Entry],
    *,
    action: Action,
    version: str,
    release_sha256: str,
    gate_sha256: str,
    reason: str,
    who: str | None,
) -> Entry:
    """Take the next entry after `head`, the history as the caller read it.

    Raises:
        WorkFailedError: `promotion_conflict` when somebody else took it meanwhile.
    """
    entry = Entry(
        entry=len(head) + 1,
        action=action,
        version=version,
        release_sha256=release_sha256,
        gate_sha256=gate_sha256,
        reason=reason,
        who=who or getpass.getuser(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        before_sha256=head[-1].sha256() if head else "",
    )
    name = f"{PREFIX}{entry.entry}"
    tags = {key: str(value) for key, value in asdict(entry).items()}
    try:
        mlflow.create_experiment(name, artifact_location=artifact_location(mlflow.tracking_uri, name), tags=tags)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        # MLflow asks again when an answer was lost: then the name was taken by this very entry
        if entry in entries(mlflow):
            return entry
        raise WorkFailedError(
            f"somebody else promoted or rolled back at the same time (history entry {entry.entry}): look at "
            "`hepalign release history` and try again if you still want to",
            code="promotion_conflict",
            status=409,
        ) from error
    return entry


def champions(history: Sequence[Entry]) -> list[Entry]:
    """The stack of champions: a promotion lays one on top, a rollback takes it away; the last is the present one.

    A champion that is promoted again takes its own place: what a rollback goes back to is another release.
    """
    stack: list[Entry] = []
    for entry in history:
        if entry.action == "rollback":
            # down to the release it names: older histories hold rollbacks to the very release that stood
            while stack and stack[-1].release_sha256 != entry.release_sha256:
                stack.pop()
        else:
            if stack and stack[-1].release_sha256 == entry.release_sha256:
                stack.pop()
            stack.append(entry)
    return stack


def verify_champion(mlflow: MlflowClient, version: str, release_sha256: str) -> Entry:
    """The promotion record of the version that carries the champion's alias.

    Raises:
        WorkFailedError: `unpromoted_champion` when the alias was moved by hand, `ledger_broken`.
    """
    history = entries(mlflow)
    present = champions(history)[-1:] if history else []
    if not present or (present[0].version, present[0].release_sha256) != (version, release_sha256):
        raise WorkFailedError(
            f"{MODEL}@{CHAMPION} points at version {version}, which the promotion history does not make champion: "
            "the alias was moved by hand; promote with `hepalign release promote`",
            code="unpromoted_champion",
        )
    return present[0]


def verify_promoted(mlflow: MlflowClient, version: str, release_sha256: str) -> Entry:
    """The latest promotion record of a version that is or was champion.

    Raises:
        WorkFailedError: `unpromoted_release`.
    """
    for entry in reversed(entries(mlflow)):
        if (entry.version, entry.release_sha256) == (version, release_sha256):
            return entry
    raise WorkFailedError(
        f"{MODEL} version {version} has never passed the gate: promote it before serving it", code="unpromoted_release"
    )


def _parse(name: str, tags: dict[str, str]) -> Entry:
    fields = {field: tags.get(field, "") for field in Entry.__dataclass_fields__ if field != "entry"}
    number = name.removeprefix(PREFIX)
    return Entry(entry=int(number) if number.isdigit() else -1, **fields)
