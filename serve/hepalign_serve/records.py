"""The tables of the case and work store: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Dialect,
    Engine,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


class _Text(TypeDecorator[str]):
    """A caller's text may hold a NUL, which PostgreSQL refuses: with a sign in its place it names nothing we know."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\0", "\N{REPLACEMENT CHARACTER}")


class Base(DeclarativeBase):
    """The one metadata of all tables. Times are seconds since 1970."""

    type_annotation_map = {str: _Text, dict[str, Any]: JSON, list[Any]: JSON, bytes: LargeBinary}  # noqa: RUF012 (SQLAlchemy's way)


class Site(Base):
    """A hospital (or department) with its own cases."""

    __tablename__ = "sites"
    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float]
    revoked: Mapped[float | None]


class Token(Base):
    """A site's key: only its id and SHA-256 are kept."""

    __tablename__ = "tokens"
    key_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.id"))
    digest: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float | None]


class CaseRow(Base):
    """One patient's images at one site; `replaced_bytes` is what earlier images take, which jobs may still use."""

    __tablename__ = "cases"
    id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str] = mapped_column(ForeignKey("sites.id"), index=True)
    created: Mapped[float]
    touched: Mapped[float]
    replaced_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class Image(Base):
    """An uploaded image as it is used; `path` is relative to the data folder."""

    __tablename__ = "images"
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    sha256: Mapped[str]
    bytes_stored: Mapped[int] = mapped_column(BigInteger)
    facts: Mapped[dict[str, Any]]
    created: Mapped[float]


class Job(Base):
    """A plan or a guide; `attempt` and `lease_until` make sure that one result counts."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), index=True)
    site_id: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    request: Mapped[dict[str, Any]]
    attempt: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[str] = mapped_column(default="queued")
    progress: Mapped[float] = mapped_column(default=0.0)
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    result: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]


Index("jobs_by_lane", Job.kind, Job.state, Job.created)


class Artifact(Base):
    """A file that a finished job left."""

    __tablename__ = "artifacts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    sha256: Mapped[str]
    bytes_stored: Mapped[int] = mapped_column(BigInteger)


class IdempotencyKey(Base):
    """What a key stood for, the job it made and the answer it got."""

    __tablename__ = "idempotency"
    site_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"))
    job_id: Mapped[str]
    answering_until: Mapped[float]
    answer: Mapped[dict[str, Any] | None]
    created: Mapped[float]


class AuditLine(Base):
    """One line of the hash chain."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[str]
    chain: Mapped[str]


class Records:
    """Sessions on the store; `with records.write() as session` is one transaction."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(url, pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_pragmas)
            event.listen(self.engine, "begin", _begin_immediate)
        self._readers = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = sessionmaker(self.engine.execution_options(write=True), expire_on_commit=False)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end, rolled back on any error."""
        with self._writers.begin() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session whose changes are thrown away."""
        with self._readers() as session:
            yield session


def _sqlite_pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    # FULL: an accepted job and a line of the audit outlive a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    # Taking the write lock at once turns SQLITE_BUSY in mid-transaction into a wait at its beginning.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")
