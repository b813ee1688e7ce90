"""The tamper-evident audit: a hash chain in the database, its head in a file outside of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from hepalign.errors import HepalignError
from hepalign_serve.problems import RequestError
from hepalign_serve.records import AuditLine, Records

_START = "0" * 64
_SET_ASIDE = ".broken-"


class AuditBrokenError(HepalignError):
    """The chain does not hold: a line was changed, removed or added."""


@dataclass(frozen=True)
class Verdict:
    """How many lines the chain has and its last hash."""

    lines: int
    head: str


class Audit:
    """The only writer of the chain. One process holds it; `append` is called by that process alone.

    A chain that does not fit its anchor at the start was tampered with while nobody looked: the anchor is set aside as
    evidence, which `verify` reports, and the chain goes on.
    """

    def __init__(self, records: Records, anchor: Path) -> None:
        self._records = records
        self._anchor = anchor
        self._number, self._head = _last(records)
        self.intact = _set_aside(anchor, self._number, self._head)

    def append(self, *, site: str, action: str, target: str, outcome: str, request_id: str) -> None:
        """Adds a line durably.

        Raises:
            RequestError: 503 `audit_unavailable`; the caller must not go on (fail closed).
        """
        number = self._number + 1
        facts = {"number": number, "time": round(time.time(), 3), "site": site, "action": action}
        line = json.dumps(facts | {"target": target, "outcome": outcome, "request_id": request_id}, sort_keys=True)
        head = _link(self._head, line)
        try:
            with self._records.write() as session:
                session.add(AuditLine(number=number, line=line, chain=head))
                session.flush()
                # A crash around the commit leaves either head; no other one is ever accepted.
                _write_anchor(self._anchor, _Anchor(self._number, self._head, pending=head), lasting=True)
        except (OSError, SQLAlchemyError) as error:
            self._number, self._head = self._reread()
            message = "the audit cannot be written: nothing was done"
            raise RequestError(message, code="audit_unavailable", status=503) from error
        self._number, self._head = number, head
        with contextlib.suppress(OSError):
            _write_anchor(self._anchor, _Anchor(number, head), lasting=False)

    def _reread(self) -> tuple[int, str]:
        try:
            return _last(self._records)
        except SQLAlchemyError:
            return self._number, self._head


@dataclass(frozen=True)
class _Anchor:
    """The head of the chain as it stands outside the database; `pending` is the head that was about to follow it."""

    number: int
    head: str
    pending: str | None = None

    def fits(self, number: int, head: str) -> bool:
        return (number, head) in ((self.number, self.head), (self.number + 1, self.pending))


def export(records: Records) -> Iterator[str]:
    """Every line of the audit with its chain value, as JSON lines, oldest first."""
    with records.read() as session:
        for row in session.scalars(select(AuditLine).order_by(AuditLine.number)):
            yield json.dumps(json.loads(row.line) | {"chain": row.chain}, sort_keys=True)


def verify(records: Records, anchor: Path) -> Verdict:
    """Recomputes the chain and compares it with the anchored head.

    Raises:
        AuditBrokenError: `audit_broken`, naming the first line that does not fit.
    """
    before = _read_anchor(anchor)
    head, count, at_anchor = _START, 0, _START
    with records.read() as session:
        for row in session.scalars(select(AuditLine).order_by(AuditLine.number)):
            count += 1
            head = _link(head, row.line)
            at_anchor = head if count == before.number else at_anchor
            if row.number != count or row.chain != head:
                raise AuditBrokenError(f"audit line {count} does not fit the chain", code="audit_broken")
    after = _read_anchor(anchor)
    written_meanwhile = before.head == at_anchor and before.number < count <= after.number + 1
    if not (after.fits(count, head) or (after != before and written_meanwhile)):
        message = f"the audit ends at line {count}, its anchor stands at {after.number}"
        raise AuditBrokenError(message, code="audit_broken")
    if set_aside := sorted(anchor.parent.glob(f"{anchor.name}{_SET_ASIDE}*")):
        message = f"the audit did not fit its anchor at a start: {set_aside[0].name} is what the anchor said"
        raise AuditBrokenError(message, code="audit_broken")
    return Verdict(count, head)


def _link(head: str, line: str) -> str:
    return hashlib.sha256(f"{head}\n{line}".encode()).hexdigest()


def _last(records: Records) -> tuple[int, str]:
    with records.read() as session:
        row = session.scalars(select(AuditLine).order_by(AuditLine.number.desc()).limit(1)).first()
        return (row.number, row.chain) if row else (0, _START)


def _read_anchor(anchor: Path) -> _Anchor:
    if not anchor.exists():
        return _Anchor(0, _START)
    try:
        return _Anchor(**json.loads(anchor.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return _Anchor(-1, "unreadable")


def _write_anchor(anchor: Path, content: _Anchor, *, lasting: bool) -> None:
    partial = anchor.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump(asdict(content), file)
        file.flush()
        if lasting:
            os.fsync(file.fileno())
    partial.replace(anchor)


def _set_aside(anchor: Path, number: int, head: str) -> bool:
    """Keeps an anchor that the chain does not fit from being written over; True when it fits."""
    if _read_anchor(anchor).fits(number, head):
        return True
    evidence = anchor.with_name(f"{anchor.name}{_SET_ASIDE}{time.time_ns()}")
    anchor.touch()
    anchor.replace(evidence)
    _write_anchor(anchor, _Anchor(number, head), lasting=True)
    return False
