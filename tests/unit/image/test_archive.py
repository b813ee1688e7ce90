from __future__ import annotations

import zipfile
from pathlib import Path

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
