"""Retention and erasure: what nobody touched for long goes, and nothing stays that no record knows."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from sqlalchemy import delete, select

from hepalign_serve.records import CaseRow, Job, Records
from hepalign_serve.work import UNFINISHED

ABANDONED_UPLOAD_S = 3600.0


def expired(records: Records, retention_days: float) -> list[tuple[str, str]]:
    """Cases (id, site) without unfinished jobs that were last touched longer ago than the retention."""
    before = time.time() - 86400.0 * retention_days
    busy = select(Job.case_id).where(Job.state.in_(UNFINISHED))
    old = select(CaseRow.id, CaseRow.site_id).where(CaseRow.touched < before, CaseRow.id.not_in(busy))
    with records.read() as session:
        return [(case, site) for case, site in session.execute(old)]


def erase(records: Records, data_folder: Path, case_id: str) -> None:
    """Removes a case's rows and files."""
    with records.write() as session:
        session.execute(delete(CaseRow).where(CaseRow.id == case_id))
    shutil.rmtree(data_folder / "cases" / case_id, ignore_errors=True)


def sweep(records: Records, data_folder: Path) -> int:
    """Removes folders of cases that are no more (work that ended after its case was erased) and dead uploads."""
    # The folders are listed first: a case's row is always there before its folder.
    folders = [path for path in (data_folder / "cases").iterdir() if path.is_dir()]
    with records.read() as session:
        known = set(session.scalars(select(CaseRow.id)))
    strays = [path for path in folders if path.name not in known]
    for path in strays:
        shutil.rmtree(path, ignore_errors=True)
    oldest = time.time() - ABANDONED_UPLOAD_S
    dead = [path for path in (data_folder / "incoming").glob("*.partial") if path.stat().st_mtime < oldest]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(strays) + len(dead)
