"""Arrays made once from a case and read by every epoch, worker and run: memory-mapped files in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]

# Part of every key: raise it when the making of any prepared array changes.
PREPARED_VERSION = 2


def cache_folder() -> Path:
    """Where local copies and prepared arrays lie: `HEPALIGN_CACHE`, else `hepalign` in the user's cache folder."""
    chosen = os.environ.get("HEPALIGN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hepalign"


def prepared_key(digests: Sequence[str], recipe: Mapping[str, object]) -> str:
    """A name for what a recipe makes of files with these SHA-256 digests."""
    text = json.dumps([PREPARED_VERSION, list(digests), dict(recipe)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prepared(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a key, read-only and memory-mapped; made where they are not yet there.

    They appear whole (a folder renamed into place), so processes that make the same ones at once do no harm.

    Args:
        key: of `prepared_key`.
        make: makes the arrays.
    """
    folder = cache_folder() / "prepared" / key[:2] / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            for name, array in make().items():
                np.save(partial / f"{name}.npy", array)
            with suppress(OSError):
                # another process was first: its arrays are the same
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
