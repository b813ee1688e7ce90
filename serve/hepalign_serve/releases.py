"""From what the operator named (a folder or an alias) to a pinned release of this service's own."""

from __future__ import annotations

import hashlib
import json
import shutil

from hepalign.cases.store import Shelf
from hepalign.errors import WorkFailedError
from hepalign.tracking.resolution import resolve_release
from hepalign_serve.task import Pinned


def pin(uri: str, shelf: Shelf, *, verify: bool = True) -> Pinned:
    """Resolves a release and copies it onto the shelf under its digest: what is served cannot change underneath.

    Args:
        uri: a local folder or an MLflow URI such as `models:/hepalign@champion`; empty: the default release.
        shelf: keeps pinned releases.
        verify: refuse what has no gate report and promotion record of its own.

    Raises:
        HepalignError: `no_release` when there is nothing to serve, and what `resolve_release` refuses.
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
        partial = own.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.replace(own)
        for path in sorted(own.iterdir()):
            shelf.keep(f"{pinned.key}/{path.name}")
    return pinned
