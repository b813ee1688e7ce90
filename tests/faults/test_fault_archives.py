from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from dicom_series import as_bytes, one, series, zipped

from hepalign.errors import BadInputError
from hepalign.image import archive
from hepalign.image.read import read_volume


def refused(path: Path, code: str, status: int) -> None:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BadInputError) as error:
        read_volume(path)
    assert (error.value.code, error.value.status) == (code, status)
    assert sorted(path.parent.rglob("*")) == before


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../out.dcm", "a/../../out.dcm", "/etc/out.dcm", "..\\out.dcm", "C:\\out.dcm"])
def test_fault_31_zip_slip(tmp_path: Path, name: str) -> None:
    content = as_bytes(one(0))
    path = packed(tmp_path / "ct.zip", {"ok.dcm": content, "X" * len(name): content})
    # zipfile itself tidies names; an attacker does not.
    path.write_bytes(path.read_bytes().replace(b"X" * len(name), name.encode()))
    refused(path, "unsafe_archive", 400)


def test_fault_31_symlink(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as made:
        link = zipfile.ZipInfo("link.dcm")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    refused(tmp_path / "ct.zip", "unsafe_archive", 400)


def test_fault_31_nested_zip(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as made:
        made.writestr("a.dcm", as_bytes(one(0)))
    refused(packed(tmp_path / "ct.zip", {"image.dcm": inner.getvalue()}), "unsafe_archive", 400)


def test_fault_32_forged_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 4 << 20)
    honest = packed(tmp_path / "big.zip", {f"{n}.dcm": bytes(1 << 20) for n in range(8)})
    refused(honest, "too_large", 413)
    # The same bomb, its directory claiming 10 bytes a member.
    forged = bytearray(honest.read_bytes())
    at = -1
    while (at := forged.find(b"PK\x01\x02", at + 1)) >= 0:
        struct.pack_into("<L", forged, at + 24, 10)
    (tmp_path / "forged.zip").write_bytes(forged)
    tracemalloc.start()
    refused(tmp_path / "forged.zip", "too_large", 413)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_fault_32_overlapping_members_are_counted_by_what_they_inflate_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 2 << 20)
    path = packed(tmp_path / "ct.zip", {f"{n}.dcm": bytes(1 << 20) for n in range(4)})
    monkeypatch.setattr(archive, "sum", lambda _: 0, raising=False)
    refused(path, "too_large", 413)


@pytest.mark.parametrize("claimed", [(0xFFFF, 0xFFFFFFFF), (1, 46)], ids=["honest", "few-claimed"])
def test_fault_32_a_million_members(tmp_path: Path, claimed: tuple[int, int]) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    directory = entry * 1_000_000
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, len(directory), 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, claimed[0], claimed[0], claimed[1], 0xFFFFFFFF, 0)
    (tmp_path / "ct.zip").write_bytes(b"PK\x03\x04" + directory + end64 + locator + end)
    tracemalloc.start()
    refused(tmp_path / "ct.zip", "too_large", 413)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_fault_32_members_are_counted_whatever_the_end_record_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    path = packed(tmp_path / "ct.zip", {f"{n}.dcm": b"" for n in range(21)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<2H", content, content.rindex(b"PK\x05\x06") + 8, 1, 1)
    path.write_bytes(content)
    refused(path, "too_large", 413)


def test_a_locator_before_nothing_is_a_damaged_directory(tmp_path: Path) -> None:
    content = packed(tmp_path / "ct.zip", {"a.dcm": as_bytes(one(0))}).read_bytes()
    at = content.rindex(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    (tmp_path / "ct.zip").write_bytes(content[:at] + locator + content[at:])
    refused(tmp_path / "ct.zip", "bad_archive", 422)


def test_damaged_encrypted_and_unusual_archives(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", series()).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.zip", "bad_archive", 422)
    broken = bytearray(whole)
    broken[whole.index(b"PK\x03\x04") + 60] ^= 0xFF
    (tmp_path / "crc.zip").write_bytes(broken)
    refused(tmp_path / "crc.zip", "bad_archive", 422)
    secret = bytearray(whole)
    secret[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(secret)
    refused(tmp_path / "secret.zip", "bad_archive", 422)
    nameless = bytearray(whole)
    at = whole.index(b"PK\x01\x02")
    nameless[at + 28 : at + 30] = bytes(2)
    (tmp_path / "nameless.zip").write_bytes(nameless)
    refused(tmp_path / "nameless.zip", "bad_archive", 422)
    lzma = packed(tmp_path / "lzma.zip", {"a.dcm": as_bytes(one(0))}, zipfile.ZIP_LZMA)
    refused(lzma, "bad_archive", 422)
    refused(packed(tmp_path / "empty.zip", {}), "no_images", 415)
