"""From what the operator named (a folder or an alias) to a pinned release of this service's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepalign.cases.manifest import sha256_of
from hepalign.cases.store import Shelf
from hepalign.errors import BadInputError, WorkFailedError
from hepalign.tracking.resolution import resolve_release
from hepalign_serve.task import Pinned


def pin(uri: str, shelf: Shelf, *, verify: bool = True) -> Pinned:
    """Resolves a release and copies it onto the shelf under its digest: what is served cannot change underneath.

    Args:
        uri: a local folder or an MLflow URI such as `models:/hepalign@champion`; empty: the default release.
        shelf: keeps pinned releases.
        verify: refuse what has no gate report and promotion record of its own.

    Raises:
        HepalignError: `no_release` when there is nothing to serve, `weights_digest` when a file is not the pinned one,
            and what `resolve_release` refuses.
    """
    folder = resolve_release(uri or None, cache=shelf.folder / "releases", verify=verify)
    try:
        content = (folder / "release.json").read_bytes()
    except OSError as error:
        raise WorkFailedError("there is no release to serve: set `release`", code="no_release") from error
    manifest = json.loads(content)
    networks = {name: str(entry.get("sha256", "")) for name, entry in manifest.get("networks", {}).items()}
    name, version = str(manifest.get("name", "hepalign")), str(manifest.get("version", "0"))
    pinned = Pinned(hashlib.sha256(content).hexdigest(), name, version, networks)
    own = shelf.folder / pinned.key
    if not own.is_dir():
        _copy(folder, own, pinned.digest, manifest)
        try:
            for path in sorted(own.iterdir()):
                shelf.keep(f"{pinned.key}/{path.name}")
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            raise
    return pinned


def _copy(folder: Path, own: Path, digest: str, manifest: Mapping[str, Any]) -> None:
    """Copies a release whole or not at all: what has its digest for a name is never looked at again."""
    partial = own.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(folder, partial)
        _check(partial, digest, manifest)
        partial.replace(own)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check(copy: Path, digest: str, manifest: Mapping[str, Any]) -> None:
    """A folder may be read while somebody writes it."""
    pinned = {"release.json": digest}
    for stage, entry in manifest.get("networks", {}).items():
        pinned |= {f"{stage}.safetensors": entry.get("sha256"), f"{stage}.json": entry.get("config_sha256")}
    for name, sha256 in pinned.items():
        if not (copy / name).is_file() or sha256_of(copy / name) != sha256:
            raise BadInputError(
                f"{name} is not the file that the release pinned: fetch it again", code="weights_digest"
            )
