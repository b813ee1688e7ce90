"""From a release's name to its folder on this machine."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from hepalign.errors import BadInputError, HepalignError
from hepalign.inference.bundle import RELEASE_FILE
from hepalign.tracking.address import CHAMPION, MODEL, exists
from hepalign.tracking.release_folder import read_manifest, require_gate


def resolve_release(release: str | None = None, *, cache: Path | None = None, verify: bool = False) -> Path:
    """The local folder of a release.

    Args:
        release: a folder, `models:/hepalign@champion`, `models:/hepalign/3`, `runs:/ID/model`; None: HEPALIGN_RELEASE,
            else a reachable champion, else the starter that comes with the package.
        cache: where fetched releases are kept; None: HEPALIGN_CACHE, else the user's cache folder.
        verify: refuse what has not passed the gate, as serving does. A champion is always checked against the history.

    Raises:
        BadInputError: `no_release`, `release_missing`, `weights_digest` when a fetched file is not the pinned one.
        WorkFailedError: `tracking_unreachable`, `unpromoted_champion`, `unpromoted_release`.
    """
    chosen = release or os.environ.get("HEPALIGN_RELEASE")
    if not chosen:
        return _default_release(cache)
    if ":/" not in chosen:
        folder = Path(chosen)
        read_manifest(folder)
        if verify:
            require_gate(folder)
        return folder
    # MLflow takes more than a second to load: a folder and the starter do without
    from hepalign.tracking.releases import fetch_registered

    return fetch_registered(chosen, cache=cache, verify=verify)


def _default_release(cache: Path | None) -> Path:
    if exists():
        try:
            return resolve_release(f"models:/{MODEL}@{CHAMPION}", cache=cache)
        except HepalignError as error:
            if error.code not in {"no_release", "tracking_unreachable"}:
                raise
    starter = Path(str(files("hepalign") / "starter"))
    if (starter / RELEASE_FILE).is_file():
        return starter
    raise BadInputError(
        "there is no release: give --release, set HEPALIGN_RELEASE, or train and promote one", code="no_release"
    )
