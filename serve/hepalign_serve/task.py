"""What a replica is asked to do, and the release it is bound to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Pinned:
    """A verified release folder: one request uses one, from its first step to its last."""

    folder: Path
    digest: str
    name: str
    version: str


@dataclass(frozen=True)
class Task:
    """One attempt: image files by Case name, the inference call's options, and the folder for the results."""

    images: Mapping[str, Path]
    options: Mapping[str, Any]
    out: Path
    plan_folder: Path | None = None
    previous_folder: Path | None = None
