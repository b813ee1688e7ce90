"""The migrations make exactly the tables that the code uses."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from hepalign_serve.records import Base, Records
from hepalign_serve.schema import upgrade


def test_migrations_match_the_tables(tmp_path: Path) -> None:
    records = Records(f"sqlite:///{tmp_path / 'db'}")
    upgrade(records.engine)
    upgrade(records.engine)  # a second start changes nothing
    with records.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
