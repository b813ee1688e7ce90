"""Images on their way to the service: files, bytes or DICOM folders, measured and cut into chunks."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PIECE_BYTES = 1 << 20
_MEDIA_TYPES = {".zip": "application/zip", ".json": "application/json", ".gz": "application/gzip"}


@dataclass(frozen=True)
class Parcel:
    """What is sent, wherever it lies: its source, bytes, SHA-256 and media type."""

    source: Path | bytes
    size: int
    digest: bytes
    media_type: str

    def pieces(self, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, a piece at a time."""
        left = self.size - start if size is None else size
        with self._opened() as file:
            file.seek(start)
            while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
                left -= len(piece)
                yield piece

    def cut(self, part_bytes: int) -> list[tuple[int, int]]:
        """Chunks as (start, size), in order."""
        return [(start, min(part_bytes, self.size - start)) for start in range(0, self.size, part_bytes)]

    def _opened(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


@contextmanager
def parcel(image: Path | bytes) -> Iterator[Parcel]:
    """A file, bytes, or a DICOM folder (zipped for the time of the block) as a parcel."""
    if isinstance(image, bytes):
        yield Parcel(image, len(image), hashlib.sha256(image).digest(), "application/octet-stream")
    elif image.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            yield _measured(_zipped(image, Path(folder) / "series.zip"))
    else:
        yield _measured(image)


def _measured(path: Path) -> Parcel:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Parcel(path, path.stat().st_size, digest, _MEDIA_TYPES.get(path.suffix, "application/octet-stream"))


def _zipped(folder: Path, target: Path) -> Path:
    # Names are numbers and dates are left out: file names may name patients, and a zip made again is the same zip.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for number, path in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.dcm"), path.read_bytes())
    return target
