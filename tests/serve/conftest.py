"""The store on both databases."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from hepalign_serve.records import CaseRow, Records, Site
from hepalign_serve.schema import upgrade


@pytest.fixture(params=["sqlite", "postgresql"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    """An empty store with this version's tables."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'db'}"
    else:
        from postgres import fresh_database

        url = fresh_database(request.getfixturevalue("postgres"), f"store_{secrets.token_hex(4)}")
    made = Records(url)
    upgrade(made.engine)
    yield made
    made.engine.dispose()


@pytest.fixture
def one_case(records: Records) -> None:
    """Site `a` with its case `case`."""
    with records.write() as session:
        session.add(Site(id="a", created=0.0, revoked=None))
        session.flush()
        session.add(CaseRow(id="case", site_id="a", created=0.0, touched=0.0))
