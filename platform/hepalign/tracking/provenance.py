"""Which code, libraries and data made a result."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

LIBRARIES = ("hepalign", "torch", "ray", "mlflow", "numpy")


class Digested(Protocol):
    """A cohort, as far as provenance needs it."""

    name: str
    digest: str


def code_commit() -> str:
    """The git commit of this code; HEPALIGN_COMMIT where there is no repository (images, Ray jobs); else unknown."""
    given = os.environ.get("HEPALIGN_COMMIT")
    git = shutil.which("git")
    if given or git is None:
        return given or "unknown"
    found = subprocess.run(  # noqa: S603 - fixed words, no shell
        [git, "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def environment() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def data_digests(cohorts: Iterable[Digested]) -> dict[str, str]:
    """Each cohort's name and its manifest's SHA-256."""
    return {cohort.name: cohort.digest for cohort in cohorts}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
