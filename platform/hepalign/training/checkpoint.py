"""Checkpoints: a folder that is complete or absent, with a digest of every file, one part per rank.

Rank 0 writes what is common (networks, optimisers, progress), every rank what is its own (random states, image
buffers). Only tensors and plain values are stored, and loading refuses anything else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hepalign.errors import BadInputError

COMMON = "common.pt"
BEST = "best"  # the best weights so far, as safetensors + JSON


def rank_file(rank: int) -> str:
    """The file name of one rank's own part."""
    return f"rank-{rank}.pt"


def write_checkpoint(
    folder: Path, name: str, *, rank: int, own: Mapping[str, Any], common: Mapping[str, Any] | None, best: Path | None
) -> Path:
    """Write this rank's part of a checkpoint to `folder/name`, all of it or nothing.

    Args:
        own: this rank's state.
        common: what all ranks share; given by rank 0.
        best: a folder of weights to keep along; given by rank 0.
    """
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digests = {rank_file(rank): _write(partial / rank_file(rank), dict(own))}
    if common is not None:
        digests[COMMON] = _write(partial / COMMON, dict(common))
    if best is not None and best.is_dir():
        shutil.copytree(best, partial / BEST)
        for path in sorted((partial / BEST).iterdir()):
            digests[f"{BEST}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    _write_synced(partial / _digest_file(rank), json.dumps(digests, indent=2, sort_keys=True).encode())
    final = folder / name
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


def read_checkpoint(folder: Path, rank: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The common part, and this rank's own part (None where the checkpoint was written by fewer ranks).

    Raises:
        BadInputError: `checkpoint_corrupt` when a file is missing, damaged, or not what its digest says.
    """
    digests = _verify(folder, 0)
    common = _read(folder / COMMON, digests)
    if rank >= common["world_size"]:
        return common, None
    return common, _read(folder / rank_file(rank), _verify(folder, rank))


def stored_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, the newest first."""
    return sorted((path for path in folder.glob("epoch-*") if path.is_dir()), reverse=True)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in stored_checkpoints(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of every random generator in this process: Python's, NumPy's, torch's."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _write(path: Path, state: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write_synced(path, buffer.getvalue())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest_file(rank: int) -> str:
    return f"digests-{rank}.json"


def _verify(folder: Path, rank: int) -> dict[str, str]:
    """The digests of this rank's files, after checking all of them."""
    try:
        digests = json.loads((folder / _digest_file(rank)).read_text(encoding="utf-8"))
        for name, expected in digests.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise _corrupt(folder, f"{name} is not what its digest says")
    except (OSError, ValueError, AttributeError) as error:
        raise _corrupt(folder, f"{_digest_file(rank)} or a file named there is missing or damaged") from error
    return dict(digests)


def _read(path: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    if path.name not in digests:
        raise _corrupt(path.parent, f"{path.name} has no digest")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise _corrupt(path.parent, f"{path.name} cannot be read") from error
    return dict(state)


def _corrupt(folder: Path, what: str) -> BadInputError:
    return BadInputError(f"checkpoint {folder.name}: {what}", code="checkpoint_corrupt")
