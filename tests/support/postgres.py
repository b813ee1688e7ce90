"""A real PostgreSQL of Debian's packages on a free port, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy

PASSWORD = "made-up"
USER = "hepalign"


@contextmanager
def server() -> Iterator[str]:
    """The address of a server for as long as the block runs, without a database's name; skips where there is none."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not tools or not (tools[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    as_user: list[str] = []
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root; the package brings its own user
        owner = pwd.getpwnam("postgres")
        for path in (folder, folder / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    port = _free_port()
    control = [*as_user, str(tools[-1] / "pg_ctl"), "-D", str(folder / "data")]
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off -c shared_buffers=16MB"
    _run(*as_user, str(tools[-1] / "initdb"), "-D", str(folder / "data"), "-U", USER, "--auth=scram-sha-256",
         f"--pwfile={folder / 'password'}", "--no-sync", "--encoding=UTF8", "--locale=C", cwd=folder)  # fmt: skip
    try:
        _run(*control, "-w", "-l", str(folder / "log"), "-o", options, "start", cwd=folder)
        yield f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def fresh_database(address: str, name: str) -> str:
    """The URL of a new, empty database."""
    engine = sqlalchemy.create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return f"{address}/{name}"


def _run(*command: str, cwd: Path) -> None:
    # A server that was started would hold a pipe open: its words go to a file.
    with (cwd / "said").open("a+", encoding="utf-8") as said:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False)
    assert done.returncode == 0, (cwd / "said").read_text(encoding="utf-8")[-2000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
