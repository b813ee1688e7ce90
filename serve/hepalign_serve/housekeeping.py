"""Retention and erasure: what nobody touched for long goes, and nothing stays that no record knows."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import delete, select

from hepalign.cases.store import Shelf
from hepalign_serve.records import CaseRow, Job, Records
from hepalign_serve.work import UNFINISHED

ABANDONED_UPLOAD_S = 3600.0
# Somebody may go on with chunks tomorrow morning, not next week: they are patient data that no image came of.
ABANDONED_CHUNK_S = 86400.0
# With an object store the data folder is a cache: what nobody touched today is fetched again when it is needed.
LOCAL_DAYS = 1.0


def expired(records: Records, retention_days: float) -> list[tuple[str, str]]:
    """Cases (id, site) without unfinished jobs that were last touched longer ago than the retention."""
    before = time.time() - 86400.0 * retention_days
    busy = select(Job.case_id).where(Job.state.in_(UNFINISHED))
    old = select(CaseRow.id, CaseRow.site_id).where(CaseRow.touched < before, CaseRow.id.not_in(busy))
    with records.read() as session:
        return [(case, site) for case, site in session.execute(old)]


def erase(records: Records, shelf: Shelf, case_id: str) -> None:
    """Removes a case's files and rows; files first, so that what could not be removed can be asked for again."""
    shelf.erase(f"cases/{case_id}")
    with records.write() as session:
        session.execute(delete(CaseRow).where(CaseRow.id == case_id))


def sweep(records: Records, shelf: Shelf) -> int:
    """Removes folders of cases that are no more (work that ended after its case was erased) and dead uploads."""
    # The folders are listed first: a case's row is always there before its folder.
    folders = shelf.folders("cases")
    with records.read() as session:
        known = set(session.scalars(select(CaseRow.id)))
    strays = folders - known
    for name in strays:
        shelf.erase(f"cases/{name}")
    if shelf.url is not None:
        for case_id, _ in expired(records, LOCAL_DAYS):
            shutil.rmtree(shelf.folder / "cases" / case_id / "jobs", ignore_errors=True)
            shutil.rmtree(shelf.folder / "cases" / case_id / "images", ignore_errors=True)
    dead = _older_than(ABANDONED_UPLOAD_S, (shelf.folder / "incoming").glob("*.partial"))
    dead += _older_than(ABANDONED_CHUNK_S, (shelf.folder / "cases").glob("*/uploads/*/*"))
    for path in dead:
        path.unlink(missing_ok=True)
    return len(strays) + len(dead)


def _older_than(seconds: float, paths: Iterable[Path]) -> list[Path]:
    oldest, found = time.time() - seconds, []
    for path in paths:
        # Its request may have ended meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found += [path] if path.stat().st_mtime < oldest else []
    return found
