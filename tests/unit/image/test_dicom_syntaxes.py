"""Real MR and CT slices as other toolkits encoded them (pydicom's own test files), each made into a series."""

from __future__ import annotations

import io
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from hepalign.errors import BadInputError
from hepalign.image.dicom import load_series

SLICES = 3


def three_slices(folder: Path, file: str) -> Path:
    """The one slice of a test file at three places; its pixel data stays as it was encoded."""
    source = get_testdata_file(file, download=False)
    if source is None:
        pytest.fail(f"pydicom no longer ships {file}")
    folder.mkdir()
    for k in range(SLICES):
        one = pydicom.dcmread(str(source))
        normal = np.cross(one.ImageOrientationPatient[:3], one.ImageOrientationPatient[3:])
        one.ImagePositionPatient = (np.asarray(one.ImagePositionPatient, float) + 4.5 * k * normal).round(6).tolist()
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        buffer = io.BytesIO()
        one.save_as(buffer)
        (folder / f"{k}").write_bytes(buffer.getvalue())
    return folder


@pytest.mark.parametrize(
    "file",
    [
        "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)  # fmt: skip
def test_every_encoding_of_one_slice_is_that_slice(tmp_path: Path, file: str) -> None:
    plain = load_series(three_slices(tmp_path / "plain", "MR_small.dcm"))
    other = load_series(three_slices(tmp_path / "other", file))
    reference = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False))).pixel_array
    np.testing.assert_array_equal(plain.volume.data[:, :, 1], reference.T)
    np.testing.assert_array_equal(other.volume.data, plain.volume.data)
    np.testing.assert_allclose(other.volume.geometry.affine, plain.volume.geometry.affine, atol=1e-6)
    assert plain.volume.geometry.spacing_mm[2] == pytest.approx(4.5)


def test_a_real_ct_slice_is_in_hu(tmp_path: Path) -> None:
    volume = load_series(three_slices(tmp_path / "ct", "CT_small.dcm")).volume
    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    hu = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
    np.testing.assert_allclose(volume.data[:, :, 2], hu.T)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("CT_small.dcm", hd.legacy.LegacyConvertedEnhancedCTImage),
        ("MR_small.dcm", hd.legacy.LegacyConvertedEnhancedMRImage),
    ],
)
def test_a_multi_frame_object_that_highdicom_makes_is_the_series(tmp_path: Path, file: str, kind: type) -> None:
    folder = three_slices(tmp_path / "single", file)
    single = load_series(folder)
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir(), reverse=True)]
    for one in slices:
        one.PatientBirthDate = one.get("PatientBirthDate") or ""
        one.PatientOrientation = one.get("PatientOrientation") or ["L", "P"]
    enhanced = kind(slices, generate_uid(), 5, generate_uid(), 1)
    enhanced.save_as(tmp_path / "enhanced.dcm")
    multi = load_series(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(multi.volume.data, single.volume.data)
    np.testing.assert_allclose(multi.volume.geometry.affine, single.volume.geometry.affine, atol=1e-5)
    assert multi.identity.patient == single.identity.patient


def test_a_row_of_bytes_too_many_could_be_a_row_that_is_not_declared(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        load_series(three_slices(tmp_path / "mr", "MR_small_padded.dcm"))
    assert caught.value.code == "pixel_size_mismatch"


@pytest.mark.parametrize(
    ("file", "codes"),
    [
        ("MR_truncated.dcm", {"truncated", "pixel_size_mismatch", "bad_dicom"}),
        ("image_dfl.dcm", {"unsupported_transfer_syntax"}),
        ("SC_rgb_rle.dcm", {"missing_geometry", "unsupported_modality"}),
        ("rtdose.dcm", {"no_images"}),
        ("liver_1frame.dcm", {"no_images"}),
        ("reportsi.dcm", {"no_images"}),
        ("no_meta.dcm", {"no_images", "unsupported_media"}),
        ("waveform_ecg.dcm", {"no_images"}),
    ],
)
def test_what_is_no_ct_or_mr_series_is_refused(file: str, codes: set[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        load_series(str(get_testdata_file(file, download=False)), name="pct")
    assert caught.value.code in codes
