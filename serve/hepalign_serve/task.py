"""What a replica is asked to do, the release it is bound to, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepalign.cases.store import Shelf


@dataclass(frozen=True)
class Pinned:
    """A verified release on the shelf: one request uses one, from its first step to its last."""

    digest: str
    name: str
    version: str
    networks: Mapping[str, str]

    @property
    def key(self) -> str:
        """Its folder on the shelf, named by its digest."""
        return f"releases/{self.digest}"


@dataclass(frozen=True)
class Errand:
    """One attempt of a job as it travels to a replica: keys of the shelf, by Case name."""

    job_id: str
    images: Mapping[str, str]
    options: Mapping[str, Any]
    out: str
    plan_folder: str | None = None
    previous_folder: str | None = None
    trace: str = ""

    def here(self, shelf: Shelf) -> Task:
        """The same with files of this machine, fetched where they were not."""
        return Task(
            images={role: shelf.fetch(key) for role, key in self.images.items()},
            options=self.options,
            out=shelf.folder / self.out,
            plan_folder=shelf.fetch_folder(self.plan_folder) if self.plan_folder else None,
            previous_folder=shelf.fetch_folder(self.previous_folder) if self.previous_folder else None,
        )


@dataclass(frozen=True)
class Task:
    """One attempt as a pipeline sees it: image files by Case name, the call's options, the folder for the results."""

    images: Mapping[str, Path]
    options: Mapping[str, Any]
    out: Path
    plan_folder: Path | None = None
    previous_folder: Path | None = None


@dataclass(frozen=True)
class LeftFile:
    """A result file: `path` relative to the data folder."""

    name: str
    path: str
    sha256: str
    bytes_stored: int
