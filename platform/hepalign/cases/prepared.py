"""Arrays made once from a case and read by every epoch, worker and run: memory-mapped files in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import WorkFailedError

Arrays = dict[str, NDArray[np.generic]]

# Part of every key: raise it when the making of any prepared array changes.
PREPARED_VERSION = 3
# What is kept of prepared arrays; those unused for longest go first.
DEFAULT_CACHE_GB = 50.0
# A process at work touches its folder more often; what is older was left by one that was killed.
STALE_S = 24 * 3600.0


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

    `HEPALIGN_CACHE_GB` limits how much is kept (50 by default). They appear whole (a folder renamed into place), so
    processes that make the same ones at once do no harm.

    Args:
        key: of `prepared_key`.
        make: makes the arrays.

    Raises:
        WorkFailedError: `cache_unusable` (507).
    """
    folder = cache_folder() / "prepared" / key[:2] / key
    # another process may forget them between the making and the opening
    while not (arrays := _opened(folder)):
        _prepare(folder, make())
        _forget_oldest(folder.parent.parent, keep=folder)
    return arrays


def _opened(folder: Path) -> Arrays | None:
    """The arrays of a folder; None where it is missing or empty, or was damaged and is now removed."""
    try:
        os.utime(folder)
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))} or None
    except FileNotFoundError:
        return None
    except (EOFError, ValueError):
        # a file cut short, as a machine that fell leaves it
        _remove(folder)
        return None
    except OSError as error:
        raise cache_unusable() from error


def _prepare(folder: Path, arrays: Arrays) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            # onto an empty folder it succeeds, onto one with files it fails
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        # another process may have been first: its arrays are the same
        if _opened(folder) is None:
            raise cache_unusable() from error


def _forget_oldest(root: Path, keep: Path) -> None:
    """Remove the arrays unused for longest until the rest fits; arrays in use stay readable until they are closed."""
    budget = float(os.environ.get("HEPALIGN_CACHE_GB", DEFAULT_CACHE_GB)) * 1e9
    found = []
    for folder in root.glob("*/*"):
        with suppress(OSError):
            used = folder.stat().st_mtime
            if folder.name.startswith(".") and used < time.time() - STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            found.append((used, sum(path.stat().st_size for path in folder.iterdir()), folder))
    total = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if total <= budget:
            return
        if folder != keep and not folder.name.startswith("."):
            _remove(folder)
            total -= size


def _remove(folder: Path) -> None:
    """Remove a folder under another name, so that no reader and no kill ever meets half of it."""
    doomed = folder.with_name(f".gone-{uuid.uuid4().hex}")
    # another process may have been first
    with suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def cache_unusable() -> WorkFailedError:
    """`cache_unusable` (507)."""
    message = "the cache folder cannot be used (full, or not writable); make room or set HEPALIGN_CACHE"
    return WorkFailedError(message, code="cache_unusable", status=507)
