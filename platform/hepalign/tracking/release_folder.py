"""A release's folder by itself: its manifest, its identity, its own gate report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hepalign.errors import BadInputError, WorkFailedError
from hepalign.inference.bundle import RELEASE_FILE

GATE_FILE = "gate.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a release folder.

    Raises:
        BadInputError: `release_missing`.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / RELEASE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{folder.name} is no release: a release is a folder with a sound {RELEASE_FILE}", code="release_missing"
        ) from error
    return manifest


def release_sha256(folder: Path) -> str:
    """The release's identity: the digest of its manifest, which pins everything else."""
    return hashlib.sha256((folder / RELEASE_FILE).read_bytes()).hexdigest()


def require_gate(folder: Path) -> dict[str, Any]:
    """A release folder's own gate report.

    Raises:
        WorkFailedError: `unpromoted_release` when there is none, it did not pass, or it is another release's.
    """
    try:
        gate: dict[str, Any] = json.loads((folder / GATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        gate = {}
    if not gate.get("passed") or gate.get("release_sha256") != release_sha256(folder):
        raise WorkFailedError(
            f"{folder.name} has no gate report of its own that passed: promote it before serving it",
            code="unpromoted_release",
        )
    return gate
