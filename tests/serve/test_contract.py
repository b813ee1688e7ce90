"""The application without Ray: its routes, its settings files, its keeping of houses."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from hepalign.cases.store import Shelf
from hepalign.errors import UsageError
from hepalign_serve import housekeeping
from hepalign_serve.api import create_app
from hepalign_serve.records import CaseRow, Records, Site
from hepalign_serve.run import prepare
from hepalign_serve.settings import Settings, load_settings

CONTRACT = {
    "POST /v1/cases", "GET /v1/cases", "GET /v1/cases/{case_id}", "DELETE /v1/cases/{case_id}",
    "PUT /v1/cases/{case_id}/images/{role}", "PUT /v1/cases/{case_id}/uploads/{role}/{part}",
    "POST /v1/cases/{case_id}/uploads/{role}/complete", "POST /v1/cases/{case_id}/plan",
    "POST /v1/cases/{case_id}/guide", "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/events",
    "GET /v1/cases/{case_id}/artifacts/{name}", "GET /v1/release", "GET /healthz", "GET /readyz",
}  # fmt: skip


class NoDesk:
    async def record(self, **line: str) -> None: ...

    async def admit(self, site: str) -> bool:
        return True

    async def wake(self) -> None: ...

    async def next_end(self, seen: int) -> int:
        await asyncio.sleep(0.05)
        return seen

    async def status(self) -> dict[str, Any]:
        return {"release": None}


def test_routes_are_the_contracts(tmp_path: Path) -> None:
    app = create_app(Settings(data_folder=tmp_path), NoDesk())
    routes = {f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item}
    assert routes >= CONTRACT
    assert not [route for route in routes if "metrics" in route or "promot" in route]


@pytest.mark.parametrize("name", ["local", "hospital"])
def test_settings_files_load(root: Path, name: str) -> None:
    settings = load_settings(root / "serve/config" / f"{name}.yaml")
    assert not settings.unjudged_release


def test_unknown_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("limits: {upload_byte: 3}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"s\.yaml: limits\.upload_byte"):
        load_settings(tmp_path / "s.yaml")


def test_retention_erases_what_nobody_touched(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path)
    records: Records = prepare(settings)
    with records.write() as session:
        session.add(Site(id="a", created=0.0, revoked=None))
        session.flush()
        for case, days in (("old", 40.0), ("new", 1.0)):
            session.add(CaseRow(id=case, site_id="a", created=0.0, touched=time.time() - 86400 * days))
            (tmp_path / "cases" / case / "images").mkdir(parents=True)
    (tmp_path / "cases" / "stray" / "jobs").mkdir(parents=True)
    assert housekeeping.expired(records, 30.0) == [("old", "a")]
    housekeeping.erase(records, Shelf(tmp_path), "old")
    assert housekeeping.sweep(records, Shelf(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["new"]


def test_chunks_that_nobody_went_on_with_go_after_a_day(tmp_path: Path) -> None:
    records: Records = prepare(Settings(data_folder=tmp_path))
    with records.write() as session:
        session.add(Site(id="a", created=0.0, revoked=None))
        session.flush()
        session.add(CaseRow(id="case", site_id="a", created=0.0, touched=time.time()))
    folder = tmp_path / "cases/case/uploads/ict"
    folder.mkdir(parents=True)
    for name, hours in (("0.part", 25.0), ("dead.partial", 25.0), ("1.part", 23.0)):
        (folder / name).write_bytes(b"patient")
        before = time.time() - 3600 * hours
        os.utime(folder / name, (before, before))
    assert housekeeping.sweep(records, Shelf(tmp_path)) == 2
    assert [path.name for path in folder.iterdir()] == ["1.part"]


def test_alerts_name_routes_that_exist(root: Path, tmp_path: Path) -> None:
    paths = create_app(Settings(data_folder=tmp_path), NoDesk()).openapi()["paths"]
    rules = (root / "infra/monitoring/alerts.yml").read_text(encoding="utf-8")
    named = set(re.findall(r'route="([^"]+)"', rules))
    assert named
    assert named <= paths.keys()
