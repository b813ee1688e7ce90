"""A gzip stream that packs nothing: for voxels whose digits are noise, where packing costs more than it saves."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, BinaryIO

from isal import isal_zlib

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# RFC 1952: deflate, no name, no time (the same bytes for the same content), unknown system.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# RFC 1951, section 3.2.4: what a stored block can hold, and an empty one that is the last.
_BLOCK_BYTES = 65535
_LAST_BLOCK = b"\x01\x00\x00\xff\xff"


class StoredGzip(io.RawIOBase):
    """Writes bytes into `file` as a gzip stream of stored blocks; any reader of gzip reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._crc = self._size = 0
        file.write(_HEADER)

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The bytes written so far."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Forward only, as gzip files do it: what is passed over are zeros."""
        if whence != io.SEEK_SET or offset < self._size:
            raise io.UnsupportedOperation("a gzip stream is written forward")
        self.write(bytes(offset - self._size))
        return self._size

    def write(self, data: ReadableBuffer, /) -> int:
        """Store all of the data."""
        content = memoryview(data).cast("B")
        for start in range(0, len(content), _BLOCK_BYTES):
            block = content[start : start + _BLOCK_BYTES]
            self._file.write(struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF))
            self._file.write(block)
        self._crc = isal_zlib.crc32(content, self._crc)
        self._size += len(content)
        return len(content)

    def close(self) -> None:
        """End the stream with its checksum; the file stays open."""
        if not self.closed:
            self._file.write(_LAST_BLOCK + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
        super().close()
