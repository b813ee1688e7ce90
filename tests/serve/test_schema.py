"""The migrations make exactly the tables that the code uses, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from hepalign_serve import schema, work
from hepalign_serve.records import Base, CaseRow, Image, Records
from hepalign_serve.schema import upgrade


def test_migrations_match_the_tables(records: Records) -> None:
    upgrade(records.engine)  # a second start changes nothing
    with records.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_files_past_two_gigabytes_are_kept(records: Records, one_case: None) -> None:
    size = 3 * 2**30
    image = Image(
        case_id="case", role="ict", path="p", sha256="0", bytes_stored=size, facts={"warnings": []}, created=0
    )
    with records.write() as session:
        session.add(image)
    with records.read() as session:
        assert session.get_one(Image, ("case", "ict")).bytes_stored == size
        assert work.stored_bytes(session, "a", CaseRow) == size


def test_rows_of_an_earlier_version_stay(records: Records) -> None:
    command_of = schema.configuration()
    with records.engine.begin() as connection:
        command_of.attributes["connection"] = connection
        command.downgrade(command_of, "0001")
    with records.engine.begin() as connection:
        connection.execute(text("insert into sites (id, created) values ('a', 0)"))
        connection.execute(text("insert into cases (id, site_id, created, touched) values ('case', 'a', 0, 0)"))
        connection.execute(
            text("insert into images values ('case', 'ict', 'p', '0', 7, '{}', 0)"),
        )
    upgrade(records.engine)
    with records.read() as session:
        assert session.get_one(Image, ("case", "ict")).bytes_stored == 7


def test_several_nodes_may_start_at_once(records: Records) -> None:
    Base.metadata.drop_all(records.engine)
    with records.engine.begin() as connection:
        connection.exec_driver_sql("drop table alembic_version")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upgrade(Records(records.engine.url).engine), range(4)))
