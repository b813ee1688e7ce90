from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from hepalign.errors import BadInputError
from hepalign.image.archive import is_zip, read_members


def test_members_come_in_order_without_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("DICOM/", b"")
        made.writestr("DICOM/b.dcm", b"second" * 100)
        made.writestr("a.dcm", b"first")
    assert is_zip(tmp_path / "a.zip")
    assert list(read_members(tmp_path / "a.zip", "pct")) == [b"second" * 100, b"first"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_with_a_comment_and_one_with_zip64_records_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as made:
        made.comment = b"exported by a viewer" * 50
        made.writestr("a.dcm", b"first")
    assert list(read_members(tmp_path / "c.zip", "pct")) == [b"first"]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as made, made.open("a.dcm", "w", force_zip64=True) as member:
        member.write(b"first")
    assert list(read_members(tmp_path / "z.zip", "pct")) == [b"first"]


def test_what_is_no_zip_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(b"\x1f\x8b\x08\x00")
    assert not is_zip(tmp_path / "n")


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_claims_to_be_longer_than_its_archive_reserves_nothing(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "lies.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("slice", bytes(1000))
    content = bytearray(path.read_bytes())
    directory = content.rfind(b"PK\x01\x02")
    struct.pack_into("<LL", content, directory + 20, 500 << 20, 500 << 20)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError) as caught:
            list(read_members(path, "lies.zip"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "bad_archive"
