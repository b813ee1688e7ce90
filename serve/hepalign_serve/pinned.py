"""The release that a request is bound to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pinned:
    """A verified release folder: one request uses one, from its first step to its last."""

    folder: Path
    digest: str
    name: str
    version: str
