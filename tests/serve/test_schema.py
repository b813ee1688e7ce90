"""The migrations make exactly the tables that the code uses, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from hepalign_serve.records import Base, Records
from hepalign_serve.schema import upgrade


def test_migrations_match_the_tables(records: Records) -> None:
    upgrade(records.engine)  # a second start changes nothing
    with records.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_several_nodes_may_start_at_once(records: Records) -> None:
    Base.metadata.drop_all(records.engine)
    with records.engine.begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upgrade(Records(records.engine.url).engine), range(4)))
