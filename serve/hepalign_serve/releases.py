"""From what the operator named (a folder or an alias) to a pinned release folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hepalign.errors import WorkFailedError
from hepalign_serve.task import Pinned


def pin(uri: str, cache: Path) -> Pinned:
    """Resolves and pins a release.

    Args:
        uri: a local folder or an MLflow URI such as `models:/hepalign@champion`.
        cache: where downloaded releases are kept.

    Raises:
        WorkFailedError: `no_release` when there is nothing to serve.
    """
    folder = Path(uri)
    if ":/" in uri:
        from hepalign.tracking.releases import fetch_release

        folder = fetch_release(uri, cache)
    manifest_file = folder / "release.json"
    if not uri or not manifest_file.is_file():
        raise WorkFailedError("there is no release to serve: set `release`", code="no_release")
    content = manifest_file.read_bytes()
    manifest = json.loads(content)
    digest = hashlib.sha256(content).hexdigest()
    return Pinned(folder.resolve(), digest, str(manifest.get("name", "hepalign")), str(manifest.get("version", "0")))
