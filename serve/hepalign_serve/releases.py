"""From what the operator named (a folder or an alias) to a pinned release of this service's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from hepalign.errors import WorkFailedError
from hepalign.tracking.releases import resolve_release
from hepalign_serve.task import Pinned


def pin(uri: str, cache: Path, *, verify: bool = True) -> Pinned:
    """Resolves a release and copies it under its digest, so that what is served cannot change underneath.

    Args:
        uri: a local folder or an MLflow URI such as `models:/hepalign@champion`; empty: the default release.
        cache: where pinned releases are kept.
        verify: refuse what has no gate report and promotion record of its own.

    Raises:
        HepalignError: `no_release` when there is nothing to serve, and what `resolve_release` refuses.
    """
    folder = resolve_release(uri or None, cache=cache, verify=verify)
    try:
        content = (folder / "release.json").read_bytes()
    except OSError as error:
        raise WorkFailedError("there is no release to serve: set `release`", code="no_release") from error
    digest = hashlib.sha256(content).hexdigest()
    own = cache / digest
    if not own.is_dir():
        partial = cache / f"{digest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.replace(own)
    manifest = json.loads(content)
    return Pinned(own, digest, str(manifest.get("name", "hepalign")), str(manifest.get("version", "0")))
