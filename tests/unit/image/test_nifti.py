from __future__ import annotations

import itertools
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from isal import igzip
from nifti_bytes import AFFINE, gz, nifti1, voxels

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.image.volume import Volume

ORIENTATIONS = [
    np.array([[sign if axis == row else 0.0 for axis, sign in zip(order, signs, strict=True)] for row in range(3)])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


def placed(direction: np.ndarray, dtype: str = "f4") -> Volume:
    grid = Geometry.from_spacing((5, 6, 7), (1.3, 2.0, 4.0), origin_mm=(-31.5, 40.25, 17), direction=direction)
    return Volume(np.random.default_rng(0).uniform(0, 100, grid.shape).astype(dtype), grid)


@pytest.mark.parametrize("direction", [*ORIENTATIONS, OBLIQUE], ids=[*map(str, range(48)), "oblique"])
def test_every_orientation_round_trips_and_nibabel_and_itk_agree(tmp_path: Path, direction: np.ndarray) -> None:
    volume, path = placed(direction), tmp_path / "v.nii.gz"
    write_nifti(volume, path)
    back = read_nifti(path)
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.geometry.affine, volume.geometry.affine, atol=1e-5)
    by_nibabel = nib.load(path)
    np.testing.assert_array_equal(np.asarray(by_nibabel.dataobj), volume.data)
    np.testing.assert_allclose(by_nibabel.affine, volume.geometry.affine, atol=1e-5)
    np.testing.assert_allclose(by_nibabel.get_qform(), volume.geometry.affine, atol=1e-4)
    by_itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk).transpose(2, 1, 0), volume.data)
    for index in [(0, 0, 0), (4, 5, 6), (1, 4, 2)]:
        theirs = np.asarray(by_itk.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose(volume.geometry.index_to_world(index), theirs, atol=1e-3)


@pytest.mark.parametrize("direction", [ORIENTATIONS[0], ORIENTATIONS[29], OBLIQUE])
def test_ants_places_voxels_as_we_do(tmp_path: Path, direction: np.ndarray) -> None:
    volume = placed(direction)
    write_nifti(volume, tmp_path / "v.nii.gz")
    image = ants.image_read(str(tmp_path / "v.nii.gz"))
    theirs = np.asarray(ants.transform_index_to_physical_point(image, (1, 3, 6))) * (-1, -1, 1)
    np.testing.assert_allclose(volume.geometry.index_to_world((1, 3, 6)), theirs, atol=1e-3)
    np.testing.assert_array_equal(image.numpy(), volume.data)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("u1", "u1"), ("i2", "i2"), ("i4", "i4"), ("f4", "f4"), ("f8", "f8"), ("i8", "i4"), ("?", "u1"), ("f2", "f4")],
)
def test_dtypes_come_back_or_become_portable(tmp_path: Path, dtype: str, stored: str) -> None:
    volume = placed(np.eye(3), dtype)
    write_nifti(volume, tmp_path / "v.nii")
    back = read_nifti(tmp_path / "v.nii")
    assert back.data.dtype == np.dtype(stored)
    np.testing.assert_array_equal(back.data, volume.data.astype(stored))


def test_scaled_voxels_are_float32_of_the_declared_line() -> None:
    content = nifti1(patches={112: ("2f", (0.5, -1024.0))})
    volume = read_nifti(content)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, voxels() * 0.5 - 1024)
    unscaled = read_nifti(nifti1(patches={112: ("2f", (0.0, 99.0))}))
    np.testing.assert_array_equal(unscaled.data, voxels())


def test_qform_alone_places_the_volume_as_nibabel_does(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), None)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * (1.5, 2, 3)
    affine[:3, 3] = (4, 5, 6)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "q.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "q.nii").geometry.affine, affine, atol=1e-4)


def test_header_extensions_are_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * 5000))
    nib.save(image, tmp_path / "e.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "e.nii.gz").data, voxels())


def test_gzip_members_may_follow_one_another() -> None:
    content = nifti1()
    parts = gz(content[:100]) + gz(content[100:400]) + gz(content[400:]) + bytes(64)
    np.testing.assert_array_equal(read_nifti(parts).data, voxels())
    with pytest.raises(BadInputError) as error:
        read_nifti(gz(content) + b"garbage after the stream")
    assert error.value.code == "corrupt_gzip"


def test_the_same_volume_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(placed(OBLIQUE), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.nii.gz"
    write_nifti(placed(np.eye(3)), path)
    before = path.read_bytes()

    def full(self: igzip.IGzipFile, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(igzip.IGzipFile, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_nifti(placed(OBLIQUE), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.nii.gz"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as ending:
        write_nifti(placed(np.eye(3)), tmp_path / "v.mha")
    assert ending.value.code == "bad_file_name"
    for data in (np.zeros((5, 6, 7), complex), np.full((5, 6, 7), 2**40)):
        with pytest.raises(UsageError) as voxel:
            write_nifti(Volume(data, placed(np.eye(3)).geometry), tmp_path / "v.nii")
        assert voxel.value.code == "unsupported_voxels"


def test_a_missing_file_is_the_callers_word(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read_nifti(tmp_path / "none.nii.gz")
    assert error.value.code == "no_such_file"
    assert str(tmp_path) not in error.value.message


def test_every_real_volume_reads_as_nibabel_reads_it(real_data: Path) -> None:
    paths = sorted(real_data.rglob("*.nii.gz"))
    assert len(paths) > 40
    for path in paths[::6]:
        volume, image = read_nifti(path), nib.load(path)
        np.testing.assert_allclose(volume.geometry.affine, image.affine, atol=1e-4)
        np.testing.assert_allclose(volume.as_float(), np.asarray(image.dataobj, dtype=np.float32), rtol=1e-6)
