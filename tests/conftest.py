"""What every test may use: the real volumes where they are, and skips that CI does not let pass unsaid."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from served import Served
    from shown_site import Shown

# torch reads it at import: the suite's timings and its bitwise comparisons want one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a Ray node ends itself where its agent takes longer than 30 s to start, as on a busy machine it may
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")

ROOT = Path(__file__).parents[1]
ALLOWED_SKIPS: dict[str, str] = tomllib.loads((ROOT / "tests/allowed_skips.toml").read_text(encoding="utf-8"))["skips"]


@pytest.fixture(scope="session", autouse=True)
def _prepared_arrays(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Keep what tests prepare out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _logged_by_handlers() -> None:
    """Servers that run in this process log through `logging`, where pytest keeps their lines with the test's.

    structlog's own default prints to whatever `sys.stdout` is at that moment. pytest exchanges it between tests, and
    Python 3.11 crashes when that happens during another thread's `print`.
    """
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT and MR volumes; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("HEPALIGN_REAL_DATA")
    if not folder:
        pytest.skip("HEPALIGN_REAL_DATA is not set: no real volumes here")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def postgres() -> Generator[str]:
    """The address of a PostgreSQL server, without a database's name."""
    from postgres import server

    with server() as address:
        yield address


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """A really running server, booted once for all tests that ask for it."""
    from served import boot

    folder = tmp_path_factory.mktemp("served")
    # There is no such release until a test makes one.
    with boot(folder, candidate=str(folder / "candidate")) as running:
        yield running


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Generator[Shown]:
    """The application over HTTP in this process, with a case whose results are known; no Ray."""
    from shown_site import shown_site

    with shown_site(tmp_path_factory.mktemp("shown")) as running:
        yield running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what asks the server for last: it lives to the end, and its idle processes slow every other test."""
    for item in items:
        if "served" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")
    items.sort(key=lambda item: "served" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skip that tests/allowed_skips.toml does not list is a failure."""
    report = yield
    listed = any(fnmatch(item.nodeid, pattern) for pattern in ALLOWED_SKIPS)
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail") and not listed:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI without an entry in tests/allowed_skips.toml: {report.longrepr}"
    return report
