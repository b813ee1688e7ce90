"""Resumable uploads: numbered chunks in a folder, put together once all are there."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

from hepalign_serve.payload import Received
from hepalign_serve.problems import RequestError
from hepalign_serve.settings import Limits
from hepalign_serve.shelf import storing

_PIECE_BYTES = 1 << 20


def folder_of(data_folder: Path, case_id: str, role: str) -> Path:
    """Where the chunks of one image lie."""
    return data_folder / "cases" / case_id / "uploads" / role


def check_part(part: int, limits: Limits) -> None:
    """400 `bad_part` for a number out of range."""
    if not 0 <= part < limits.parts:
        raise RequestError(f"chunks are numbered 0 to {limits.parts - 1}", code="bad_part", status=400)


def parts(folder: Path) -> dict[int, int]:
    """The chunks that have come: number to bytes."""
    found = {int(path.stem): path.stat().st_size for path in folder.glob("*.part")}
    return dict(sorted(found.items()))


def stored_bytes(data_folder: Path, cases: Iterable[str]) -> int:
    """What the chunks of these cases take."""
    total = 0
    for case in cases:
        for path in (data_folder / "cases" / case / "uploads").glob("*/*.part"):
            # Another request may have put them together meanwhile.
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def keep(received: Received, folder: Path, part: int, limits: Limits) -> dict[int, int]:
    """Puts a received chunk in its place; returns the chunks that have come.

    Raises:
        RequestError: 413 `too_large` when all chunks together pass the limit.
    """
    others = sum(size for number, size in parts(folder).items() if number != part)
    if others + received.size > limits.upload_bytes:
        received.path.unlink()
        raise RequestError(f"an image may have {limits.upload_bytes} bytes at most", code="too_large", status=413)
    received.path.replace(folder / f"{part}.part")
    return parts(folder)


def join(folder: Path, count: int, sha256: str, target: Path, limits: Limits) -> Received:
    """The chunks 0 … count-1 as one file.

    Raises:
        RequestError: 409 `parts_missing`, 422 `digest_mismatch`, 413 `too_large`.
    """
    here = parts(folder)
    missing = [number for number in range(min(count, limits.parts)) if number not in here]
    if count > limits.parts:
        raise RequestError(f"an upload has {limits.parts} chunks at most", code="bad_part", status=400)
    if missing:
        raise RequestError(f"chunks are missing, the first is {missing[0]}", code="parts_missing", status=409)
    whole, path = hashlib.sha256(), target / f"{secrets.token_hex(12)}.partial"
    try:
        with storing(), path.open("wb") as out:
            for number in range(count):
                with (folder / f"{number}.part").open("rb") as chunk:
                    while piece := chunk.read(_PIECE_BYTES):
                        whole.update(piece)
                        out.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if whole.hexdigest() != sha256:
        path.unlink()
        raise RequestError("the whole does not have the sha256 that was sent", code="digest_mismatch", status=422)
    return Received(path, sha256, path.stat().st_size)
