"""Brings a database to this version's tables (alembic); safe to call at every start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x4865  # any number, the same in every process


def configuration() -> Config:
    """Alembic's settings; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Applies the migrations that the database has not seen, in one transaction."""
    config = configuration()
    with engine.execution_options(write=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            # Several nodes may start at once; SQLite's write lock does the same.
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
