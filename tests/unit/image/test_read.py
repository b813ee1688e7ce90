from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import as_bytes, enhanced, series, write, zipped
from nifti_bytes import gz, nifti1, voxels

from hepalign.errors import BadInputError, UsageError
from hepalign.image.read import holds_dicom, read_volume


def test_a_volume_is_read_by_what_it_is_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(gz(nifti1()))
    (tmp_path / "b").write_bytes(nifti1())
    (tmp_path / "c.nii.gz").write_bytes(as_bytes(enhanced()))
    zipped(tmp_path / "d.nii", series())
    write(tmp_path / "e.nii.gz", series())
    np.testing.assert_array_equal(read_volume(tmp_path / "a.zip").data, voxels())
    np.testing.assert_array_equal(read_volume(tmp_path / "b").data, voxels())
    assert [holds_dicom(tmp_path / name) for name in ("a.zip", "b", "c.nii.gz", "d.nii", "e.nii.gz")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    shapes = {read_volume(tmp_path / name).geometry.shape for name in ("c.nii.gz", "d.nii", "e.nii.gz")}
    assert len(shapes) == 1


def test_messages_use_the_given_name_and_never_the_folder(tmp_path: Path) -> None:
    (tmp_path / "Doe^Jane.nii.gz").write_bytes(b"junk of some length")
    with pytest.raises(BadInputError) as error:
        read_volume(tmp_path / "Doe^Jane.nii.gz", name="pct")
    assert error.value.message.startswith("pct: ")
    assert "Doe" not in error.value.message
    with pytest.raises(UsageError) as missing:
        read_volume(tmp_path / "none", name="pmr")
    assert missing.value.message.startswith("pmr: ")


def test_orientation_reaches_the_reader(tmp_path: Path) -> None:
    both = {252: ("2h", (1, 1)), 256: ("6f", (0, 0, 0, -10, 20, -35))}
    (tmp_path / "v.nii").write_bytes(nifti1(patches=both))
    assert read_volume(tmp_path / "v.nii", orientation="qform").geometry.origin_mm == pytest.approx((-10, 20, -35))
