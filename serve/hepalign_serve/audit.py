"""The tamper-evident audit: a hash chain in the database, its head in a file outside of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from hepalign.errors import HepalignError
from hepalign_serve.problems import RequestError
from hepalign_serve.records import AuditLine, Records

_START = "0" * 64


class AuditBrokenError(HepalignError):
    """The chain does not hold: a line was changed, removed or added."""


@dataclass(frozen=True)
class Verdict:
    """How many lines the chain has and its last hash."""

    lines: int
    head: str


class Audit:
    """The only writer of the chain. One process holds it; `append` is called by that process alone."""

    def __init__(self, records: Records, anchor: Path) -> None:
        self._records = records
        self._anchor = anchor
        self._number, self._head = _last(records)

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
                _write_anchor(self._anchor, number, head)
        except (OSError, SQLAlchemyError) as error:
            self._number, self._head = self._reread()
            message = "the audit cannot be written: nothing was done"
            raise RequestError(message, code="audit_unavailable", status=503) from error
        self._number, self._head = number, head

    def _reread(self) -> tuple[int, str]:
        try:
            return _last(self._records)
        except SQLAlchemyError:
            return self._number, self._head


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
    head, count = _START, 0
    with records.read() as session:
        for row in session.scalars(select(AuditLine).order_by(AuditLine.number)):
            count += 1
            head = _link(head, row.line)
            if row.number != count or row.chain != head:
                raise AuditBrokenError(f"audit line {count} does not fit the chain", code="audit_broken")
    known = json.loads(anchor.read_text(encoding="utf-8")) if anchor.exists() else {"number": 0, "head": _START}
    # The anchor is written inside the line's transaction: a crash between the two leaves it one line ahead at most.
    if known["head"] != head and known["number"] != count + 1:
        message = f"the audit ends at line {count}, its anchor stands at {known['number']}"
        raise AuditBrokenError(message, code="audit_broken")
    return Verdict(count, head)


def _link(head: str, line: str) -> str:
    return hashlib.sha256(f"{head}\n{line}".encode()).hexdigest()


def _last(records: Records) -> tuple[int, str]:
    with records.read() as session:
        row = session.scalars(select(AuditLine).order_by(AuditLine.number.desc()).limit(1)).first()
        return (row.number, row.chain) if row else (0, _START)


def _write_anchor(anchor: Path, number: int, head: str) -> None:
    partial = anchor.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump({"number": number, "head": head}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(anchor)
