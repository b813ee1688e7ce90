"""Zip archives from outside, opened without trust: nothing is written, nothing is believed before it is counted."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hepalign.errors import BadInputError

MAX_MEMBERS = 20_000
# A directory entry is 46 bytes and a name; DICOM exports nest their folders a few levels deep.
MAX_DIRECTORY_BYTES = MAX_MEMBERS * 512
# One CT of 1,000 slices at 512 x 512 is half of it.
MAX_ARCHIVE_BYTES = 1 << 30
_END_BYTES, _COMMENT_BYTES = 22, 65535
_LOCATOR_BYTES, _END64_BYTES = 20, 56
_LOCAL_NAMES_AT = 26
_CHUNK = 1 << 20
# zipfile trusts its directory: an empty name is an IndexError, one in no encoding a ValueError.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, OSError, IndexError,
    ValueError, OverflowError,
)  # fmt: skip
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) in _ZIP_MAGICS


def read_members(path: Path, name: str) -> Iterator[bytes]:
    """The contents of an archive's files, one after the other, in the archive's order.

    Args:
        path: the archive.
        name: what to call it in messages; the members' own names may hold patient data and are never told.

    Raises:
        BadInputError: `unsafe_archive` (400) for a path that leaves the folder, a link or an archive in the archive;
            `too_large` (413) for too many members or bytes, also where the directory lies about them;
            `bad_archive` for what is damaged, encrypted or packed in another way than stored or deflated.
    """
    try:
        with path.open("rb") as file:
            _check_directory(file, name)
            with zipfile.ZipFile(file) as archive:
                # the end record may have claimed fewer than the directory lists
                if len(archive.infolist()) > MAX_MEMBERS:
                    raise _too_many(name)
                members = [member for member in archive.infolist() if not member.is_dir()]
                for member in members:
                    _check_member(member, name)
                # Python reserves what it is told to read: a member is no longer than its archive
                size = path.stat().st_size
                if any(member.compress_size > size for member in members):
                    raise zipfile.BadZipFile
                if sum(member.file_size for member in members) > MAX_ARCHIVE_BYTES:
                    raise _too_large(name)
                yield from _inflate(archive, members, name)
    except _DAMAGE:
        raise BadInputError(f"{name}: the archive is damaged; pack it again", code="bad_archive") from None


def _check_directory(file: BinaryIO, name: str) -> None:
    """Read the end record by hand: zipfile loads the whole directory before anyone can count it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END64_BYTES - _LOCATOR_BYTES - _END_BYTES - _COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END_BYTES > len(tail):
        raise BadInputError(f"{name}: the archive breaks off; send it again", code="bad_archive")
    entries, directory_bytes = struct.unpack_from("<HL", tail, at + 10)
    # zipfile goes by the ZIP64 record wherever its locator stands, whatever the record above claims
    located = tail[max(at - _LOCATOR_BYTES, 0) : at].startswith(b"PK\x06\x07")
    if located or entries == 0xFFFF or directory_bytes == 0xFFFFFFFF:
        at -= _LOCATOR_BYTES + _END64_BYTES
        if not located or at < 0 or not tail.startswith(b"PK\x06\x06", at):
            raise BadInputError(f"{name}: the archive's directory is damaged; pack it again", code="bad_archive")
        entries, directory_bytes = struct.unpack_from("<QQ", tail, at + 32)
    if entries > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise _too_many(name)
    file.seek(0)


def _check_member(member: zipfile.ZipInfo, name: str) -> None:
    inner = PurePosixPath(member.filename.replace("\\", "/"))
    drive = len(inner.parts) > 0 and inner.parts[0].endswith(":")
    if inner.is_absolute() or ".." in inner.parts or drive:
        message = f"{name}: a path in the archive leads out of it; pack the folder itself"
        raise BadInputError(message, code="unsafe_archive", status=400)
    if stat.S_ISLNK(member.external_attr >> 16):
        message = f"{name}: a link in the archive; pack the files themselves"
        raise BadInputError(message, code="unsafe_archive", status=400)
    if member.flag_bits & 0x1:
        raise BadInputError(f"{name}: the archive is encrypted; send it open", code="bad_archive")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        message = f"{name}: the archive is packed in an unusual way; use plain zip (deflate)"
        raise BadInputError(message, code="bad_archive")


def _inflate(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str) -> Iterator[bytes]:
    left = MAX_ARCHIVE_BYTES
    for member in members:
        try:
            with archive.open(member) as file:
                content = file.read(left + 1)
        except (zipfile.BadZipFile, EOFError):
            if _inflates_past_its_size(archive, member):
                raise _too_large(name) from None
            raise
        left -= len(content)
        if left < 0:
            raise _too_large(name)
        if content[:4] in _ZIP_MAGICS:
            message = f"{name}: an archive in the archive; send one series in one zip"
            raise BadInputError(message, code="unsafe_archive", status=400)
        yield content


def _inflates_past_its_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether the directory understates a member: zipfile stops at the stated size and calls it damaged."""
    file = archive.fp
    if file is None or member.compress_type != zipfile.ZIP_DEFLATED:
        return False
    file.seek(member.header_offset + _LOCAL_NAMES_AT)
    file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
    inflate, left = zlib.decompressobj(wbits=-zlib.MAX_WBITS), member.file_size
    data = file.read(member.compress_size)
    while left >= 0 and data and not inflate.eof:
        left -= len(inflate.decompress(data, _CHUNK))
        data = inflate.unconsumed_tail
    return left < 0


def _too_many(name: str) -> BadInputError:
    message = f"{name}: more than {MAX_MEMBERS} files in the archive; send one series"
    return BadInputError(message, code="too_large", status=413)


def _too_large(name: str) -> BadInputError:
    message = f"{name}: the archive holds more than {MAX_ARCHIVE_BYTES >> 20} MiB; send one series"
    return BadInputError(message, code="too_large", status=413)
