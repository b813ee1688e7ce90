from __future__ import annotations

import io
import math
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_bytes import AFFINE, SHAPE, gz, gz_of_zeros, nifti1, nifti2, voxels

from hepalign.errors import BadInputError
from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.image.read import read_volume

DIM, DATATYPE, OFFSET, SLOPE, CODES, QUATERNION, SROW = 40, 70, 108, 112, 252, 256, 280


def refused(content: bytes, code: str, status: int = 422) -> BadInputError:
    with pytest.raises(BadInputError) as error:
        read_nifti(content, name="pct")
    assert (error.value.code, error.value.status) == (code, status)
    assert "pct" in error.value.message
    assert "\n" not in error.value.message
    return error.value


def srow(affine: np.ndarray) -> dict[int, tuple[str, tuple[float, ...]]]:
    return {SROW: ("12f", tuple(affine[:3].ravel().tolist()))}


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "junk"])
def test_fault_01_gzip_bomb(declared: bool) -> None:
    start = nifti1(dim=(3, 1200, 1200, 1000), content=b"") if declared else b""
    bomb = gz_of_zeros(300, start)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    refused(bomb, "too_large", 413)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_fault_02_honest_mask_at_1000_to_1() -> None:
    mask = np.zeros((128, 128, 96), np.uint8)
    mask[40:60, 40:60, 40:60] = 1
    content = gz(nifti1(mask))
    assert mask.size / len(content) > 300
    np.testing.assert_array_equal(read_nifti(content).data, mask)


def test_fault_03_gigabytes_after_the_voxels() -> None:
    content = gz_of_zeros(200, nifti1())
    tracemalloc.start()
    refused(content, "trailing_data")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert read_nifti(gz(nifti1() + bytes(512))).data.shape == SHAPE


@pytest.mark.parametrize("cut", [1, 4, 9, 30])
def test_fault_04_truncated_gzip(cut: int) -> None:
    refused(gz(nifti1())[:-cut], "truncated")


def test_fault_04_bad_crc() -> None:
    content = bytearray(gz(nifti1()))
    content[-8] ^= 0xFF
    refused(bytes(content), "corrupt_gzip")
    content = bytearray(gz(nifti1()))
    content[40] ^= 0xFF
    with pytest.raises(BadInputError):
        read_nifti(bytes(content))


def test_fault_05_truncated_nii() -> None:
    for length in (2, 100, 348, 352, len(nifti1()) - 1):
        content = nifti1()[:length]
        refused(content, "unsupported_media" if length < 4 else "truncated", 415 if length < 4 else 422)


def test_fault_06_dims_32767_cubed() -> None:
    tracemalloc.start()
    refused(nifti1(dim=(3, 32767, 32767, 32767)), "too_large", 413)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("dim", [(3, 5, 0, 7), (3, 5, -6, 7), (9, 5, 6, 7), (0, 5, 6, 7), (-1, 5, 6, 7)])
def test_fault_07_impossible_dimensions(dim: tuple[int, ...]) -> None:
    refused(nifti1(dim=dim), "bad_header")


@pytest.mark.parametrize("offset", [math.nan, math.inf, -1.0, 0.0, 347.0, 352.5, 1e30])
def test_fault_08_vox_offset_that_cannot_be(offset: float) -> None:
    refused(nifti1(patches={OFFSET: ("f", (offset,))}), "bad_header")


def test_fault_08_vox_offset_past_the_end() -> None:
    refused(nifti1(patches={OFFSET: ("f", (1e6,))}), "truncated")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [(0, 0), (1, 2), (2, 3)])
def test_fault_09_affine_with_nan_or_inf(value: float, at: tuple[int, int]) -> None:
    affine = AFFINE.copy()
    affine[at] = value
    refused(nifti1(patches=srow(affine)), "bad_affine")


def test_fault_09_quaternion_with_nan() -> None:
    refused(nifti1(patches={CODES: ("2h", (1, 0)), QUATERNION: ("6f", (math.nan, 0, 0, 0, 0, 0))}), "bad_affine")


def test_fault_10_singular_affine() -> None:
    flat, twin = AFFINE.copy(), AFFINE.copy()
    flat[:3, 1] = 0
    twin[:3, 1] = twin[:3, 0]
    for affine in (flat, twin):
        refused(nifti1(patches=srow(affine)), "singular_affine")


def test_fault_10_sheared_affine() -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 0.3
    assert "shear" in refused(nifti1(patches=srow(affine)), "sheared_affine").message


def test_fault_11_no_orientation() -> None:
    refused(nifti1(patches={CODES: ("2h", (0, 0))}), "no_orientation")


def test_fault_12_sform_is_not_qform() -> None:
    both = {CODES: ("2h", (1, 1)), QUATERNION: ("6f", (0, 0, 0, -10, 20, -35))}
    content = nifti1(patches=both)
    refused(content, "orientation_conflict")
    assert read_nifti(content, orientation="sform").geometry.origin_mm == pytest.approx((-10, 20, -30))
    assert read_nifti(content, orientation="qform").geometry.origin_mm == pytest.approx((-10, 20, -35))
    agree = {CODES: ("2h", (1, 1)), QUATERNION: ("6f", (0, 0, 0, -10, 20, -30.01))}
    assert read_nifti(nifti1(patches=agree)).geometry.origin_mm == pytest.approx((-10, 20, -30))
    with pytest.raises(BadInputError) as error:
        read_nifti(nifti1(), orientation="qform")
    assert error.value.code == "no_orientation"


def test_fault_13_negative_determinant(tmp_path: Path) -> None:
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    volume = read_nifti(nifti1(affine=mirrored))
    np.testing.assert_allclose(volume.geometry.affine, mirrored)
    write_nifti(volume, tmp_path / "out.nii.gz")
    again = read_volume(tmp_path / "out.nii.gz")
    assert again.geometry.same_grid(volume.geometry)
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").get_qform(), mirrored, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_fault_14_implausible_spacing(scale: float) -> None:
    refused(nifti1(patches=srow(AFFINE @ np.diag([scale, scale, scale, 1]))), "implausible_grid")


def test_fault_14_implausible_field_of_view_place_and_units() -> None:
    long = np.zeros((2, 2, 200), np.uint8)
    refused(nifti1(long, affine=np.diag([1.0, 1, 40, 1])), "implausible_grid")
    away = AFFINE.copy()
    away[0, 3] = 1e7
    refused(nifti1(patches=srow(away)), "implausible_grid")
    refused(nifti1(patches={123: ("B", (1,))}), "implausible_grid")


@pytest.mark.parametrize("dim", [(4, 5, 6, 7, 2), (5, 5, 6, 7, 1, 3), (2, 5, 6), (1, 5)])
def test_fault_15_not_three_dimensional(dim: tuple[int, ...]) -> None:
    refused(nifti1(dim=dim), "not_3d")


def test_fault_15_a_trailing_single_frame_is_three_dimensional() -> None:
    assert read_nifti(nifti1(dim=(4, *SHAPE, 1))).data.shape == SHAPE


@pytest.mark.parametrize("datatype", [128, 2304, 32, 1792, 2048, 1536, 1, 0, -5])
def test_fault_15_colour_or_complex(datatype: int) -> None:
    refused(nifti1(patches={DATATYPE: ("h", (datatype,))}), "unsupported_voxels")


def test_fault_15_bits_that_do_not_fit() -> None:
    refused(nifti1(patches={DATATYPE: ("2h", (4, 8))}), "bad_header")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fault_16_nonfinite_voxels_and_scale(value: float) -> None:
    data = voxels("f4")
    data[2, 3, 4] = value
    refused(nifti1(data), "nonfinite_voxels")
    refused(nifti1(patches={SLOPE: ("f", (value,))}), "nonfinite_scale")
    refused(nifti1(patches={SLOPE + 4: ("f", (value,))}), "nonfinite_scale")


def test_fault_16_a_scale_that_overflows() -> None:
    refused(nifti1(voxels("f8") * 1e30, patches={SLOPE: ("f", (1e30,))}), "nonfinite_voxels")


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("a.nii", nifti1())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [archive(), b"\x89PNG\r\n\x1a\n" + bytes(400), b"%PDF-1.7" + bytes(400), gz(b"text" * 99), bytes(400)]
)
def test_fault_17_another_file_named_nii_gz(content: bytes) -> None:
    refused(content, "unsupported_media", 415)


def test_fault_17_a_zip_named_nii_gz_has_no_image(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").write_bytes(archive())
    with pytest.raises(BadInputError) as error:
        read_volume(tmp_path / "image.nii.gz")
    assert error.value.status == 415


def test_fault_17_analyze_and_header_pairs() -> None:
    refused(nifti1(patches={344: ("4s", (b"ni1\0",))}), "unsupported_media", 415)  # type: ignore[dict-item]
    refused(nifti1(patches={344: ("4s", (b"\0\0\0\0",))}), "unsupported_media", 415)  # type: ignore[dict-item]


def test_fault_18_empty_file(tmp_path: Path) -> None:
    refused(b"", "empty_file")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(BadInputError) as error:
        read_volume(tmp_path / "empty.nii.gz")
    assert error.value.code == "empty_file"
    assert str(tmp_path) not in error.value.message
    refused(zlib.compress(b"")[:1], "unsupported_media", 415)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("make", [nifti1, nifti2])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4", "i8", "u8"])
def test_fault_19_byte_orders_and_versions(order: str, make: object, dtype: str) -> None:
    content = make(voxels(dtype), order=order)  # type: ignore[operator]
    for packed in (content, gz(content)):
        volume = read_nifti(packed)
        assert volume.data.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(volume.data, voxels(dtype))
        np.testing.assert_allclose(volume.geometry.affine, AFFINE)
    theirs = nib.Nifti1Image.from_bytes(content) if make is nifti1 else nib.Nifti2Image.from_bytes(content)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), voxels(dtype))
