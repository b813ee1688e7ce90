"""The audit's chain shows every change, and refuses to go on when it cannot be written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hepalign_serve import audit as auditing
from hepalign_serve.audit import Audit, AuditBrokenError, export, verify
from hepalign_serve.problems import RequestError
from hepalign_serve.records import AuditLine, Records


def fill(records: Records, anchor: Path, count: int) -> Audit:
    audit = Audit(records, anchor)
    for number in range(count):
        audit.append(site="a", action="open", target=str(number), outcome="allowed", request_id="r")
    return audit


def test_a_whole_chain_verifies_and_is_exported(records: Records, tmp_path: Path) -> None:
    fill(records, tmp_path / "head", 3)
    fill(records, tmp_path / "head", 2)  # a new writer goes on where the last one ended
    assert verify(records, tmp_path / "head").lines == 5
    lines = [json.loads(line) for line in export(records)]
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["chain"] == verify(records, tmp_path / "head").head


@pytest.mark.parametrize("harm", ["change", "remove", "cut", "cut one", "swap", "add", "rewrite"])
def test_tampering_shows(records: Records, tmp_path: Path, harm: str) -> None:
    fill(records, tmp_path / "head", 5)
    with records.write() as session:
        rows = {number: session.get_one(AuditLine, number) for number in range(1, 6)}
        if harm == "change":
            rows[2].line = rows[2].line.replace('"allowed"', '"denied"')
        elif harm == "remove":
            session.delete(rows[3])
        elif harm == "cut":
            session.delete(rows[4])
            session.delete(rows[5])
        elif harm == "cut one":
            session.delete(rows[5])
        elif harm == "add":
            session.add(AuditLine(number=6, line="{}", chain=link(rows[5].chain, "{}")))
        elif harm == "rewrite":
            # a whole chain of their own making, one line shorter
            head = "0" * 64
            for number in range(1, 5):
                rows[number].line = rows[number].line.replace('"allowed"', '"denied"')
                head = rows[number].chain = link(head, rows[number].line)
            session.delete(rows[5])
        else:
            rows[1].line, rows[2].line = rows[2].line, rows[1].line
    with pytest.raises(AuditBrokenError):
        verify(records, tmp_path / "head")


def link(head: str, line: str) -> str:
    return hashlib.sha256(f"{head}\n{line}".encode()).hexdigest()


@pytest.mark.parametrize("harm", ["cut one", "anchor gone", "anchor spoilt"])
def test_tampering_while_nobody_looks_stays_evident(records: Records, tmp_path: Path, harm: str) -> None:
    fill(records, tmp_path / "head", 5)
    if harm == "cut one":
        with records.write() as session:
            session.delete(session.get_one(AuditLine, 5))
    elif harm == "anchor gone":
        (tmp_path / "head").unlink()
    else:
        (tmp_path / "head").write_text("{")
    again = fill(records, tmp_path / "head", 2)  # the service starts again and goes on
    assert not again.intact
    with pytest.raises(AuditBrokenError, match="broken"):
        verify(records, tmp_path / "head")


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_crash_is_no_tampering(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    audit = fill(records, tmp_path / "head", 2)
    write_anchor = auditing._write_anchor

    def dying(anchor: Path, content: object, *, lasting: bool) -> None:
        if lasting:
            write_anchor(anchor, content, lasting=True)  # type: ignore[arg-type]
        if lasting == (moment == "before the commit"):
            raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "_write_anchor", dying)
    with pytest.raises(KeyboardInterrupt):
        audit.append(site="a", action="open", target="x", outcome="allowed", request_id="r")
    monkeypatch.undo()
    assert verify(records, tmp_path / "head").lines == (2 if moment == "before the commit" else 3)
    assert fill(records, tmp_path / "head", 1).intact
    assert verify(records, tmp_path / "head").lines == (3 if moment == "before the commit" else 4)


def test_fails_closed_and_recovers(records: Records, tmp_path: Path) -> None:
    audit = fill(records, tmp_path / "head", 2)
    (tmp_path / "head.partial").mkdir()
    with pytest.raises(RequestError) as error:
        audit.append(site="a", action="open", target="x", outcome="allowed", request_id="r")
    assert (error.value.code, error.value.status) == ("audit_unavailable", 503)
    (tmp_path / "head.partial").rmdir()
    audit.append(site="a", action="open", target="y", outcome="allowed", request_id="r")
    assert verify(records, tmp_path / "head").lines == 3
