from __future__ import annotations

import gzip
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume
from hepalign.transform import linear
from hepalign.transform.displacement import DisplacementField, compose, transform_points
from hepalign.transform.files import read_field, write_field
from hepalign.transform.warp import warp

TURN = linear.rotation((12, -27, 35))[:3, :3]
GRID = Geometry.from_spacing((22, 26, 14), (1.3, 2.0, 4.0), origin_mm=(-12, -30, -20), direction=TURN)
MOVING = Geometry.from_spacing((30, 28, 26), (2.2, 2.0, 2.6), origin_mm=(-35, -30, -40), direction=TURN.T)


def smooth_field(grid: Geometry = GRID) -> DisplacementField:
    x, y, z = np.moveaxis(grid.grid_mm(), -1, 0)
    vectors = np.stack([4 * np.cos(y / 20), 3 * np.sin(x / 15), 6 * np.cos(z / 25)], axis=-1)
    return DisplacementField(vectors.astype(np.float32), grid)


def inner_points(count: int = 60) -> np.ndarray:
    share = np.random.default_rng(0).uniform(0.1, 0.9, (count, 3))
    return GRID.index_to_world(share * (np.asarray(GRID.shape) - 1))


def moving_image() -> Volume:
    x, y, z = np.moveaxis(MOVING.grid_mm(), -1, 0)
    return Volume((np.sin(x / 9) + np.cos(y / 8) * np.sin(z / 10)).astype(np.float32), MOVING)


def lps(points: np.ndarray) -> np.ndarray:
    return points * (-1, -1, 1)


@pytest.mark.parametrize("name", ["field.nii.gz", "field.nii", "field.h5"])
def test_a_field_comes_back_with_its_linear_part(tmp_path: Path, name: str) -> None:
    matrix = linear.rotation((1, 2, 30)) @ linear.translation((9, 8, 7))
    field = DisplacementField(smooth_field().vectors, GRID, matrix)
    write_field(field, tmp_path / name)
    back = read_field(tmp_path / name)
    np.testing.assert_array_equal(back.vectors, field.vectors)
    np.testing.assert_array_equal(back.linear, matrix)
    assert back.geometry.same_grid(GRID, 1e-4)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["field.nii.gz", "field.h5"])
def test_simpleitk_moves_points_and_images_as_we_do(tmp_path: Path, name: str) -> None:
    field, moving = smooth_field(), moving_image()
    write_field(field, tmp_path / name)
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(Volume(np.zeros(GRID.shape, np.float32), GRID), tmp_path / "fixed.nii.gz")
    if name.endswith(".h5"):
        transform = sitk.ReadTransform(str(tmp_path / name))
    else:
        image = sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64)
        transform = sitk.DisplacementFieldTransform(image)
    theirs = np.array([transform.TransformPoint(point) for point in lps(inner_points()).tolist()])
    assert np.abs(lps(theirs) - transform_points(field, inner_points())).max() < 0.01
    fixed, read = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    warped = sitk.GetArrayFromImage(sitk.Resample(read, fixed, transform, sitk.sitkLinear, 0.0)).transpose(2, 1, 0)
    ours = warp(moving, field, fill=0.0).data
    assert np.quantile(np.abs(warped - ours), 0.999) < 1e-3 * np.ptp(moving.data)


@pytest.mark.parametrize("name", ["field.nii.gz", "field.h5"])
def test_ants_moves_points_and_images_as_we_do(tmp_path: Path, name: str) -> None:
    field, moving = smooth_field(), moving_image()
    write_field(field, tmp_path / name)
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(Volume(np.zeros(GRID.shape, np.float32), GRID), tmp_path / "fixed.nii.gz")
    fixed, read = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    warped = ants.apply_transforms(fixed, read, [str(tmp_path / name)], interpolator="linear").numpy()
    ours = warp(moving, field, fill=0.0).data
    assert np.quantile(np.abs(warped - ours), 0.999) < 1e-3 * np.ptp(moving.data)
    if name.endswith(".nii.gz"):
        import pandas as pd

        points = pd.DataFrame(lps(inner_points()), columns=["x", "y", "z"])
        theirs = ants.apply_transforms_to_points(3, points, [str(tmp_path / name)]).to_numpy()[:, :3]
        assert np.abs(lps(theirs) - transform_points(field, inner_points())).max() < 0.01


def test_nibabel_reads_the_file_as_itk_documents_it(tmp_path: Path) -> None:
    field = smooth_field()
    write_field(field, tmp_path / "field.nii.gz")
    image = nib.load(tmp_path / "field.nii.gz")
    assert image.shape == (*GRID.shape, 1, 3)
    assert int(image.header["intent_code"]) == 1007
    np.testing.assert_allclose(image.affine, GRID.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(image.dataobj)[:, :, :, 0] * (-1, -1, 1), field.vectors, atol=1e-6)


def test_an_ants_composite_h5_is_read(tmp_path: Path) -> None:
    warp_part = smooth_field()
    affine = linear.rotation((3, 4, 15), (5, 5, 5)) @ linear.translation((6, -2, 1))
    write_field(warp_part, tmp_path / "warp.h5")
    in_lps = linear.to_lps(affine)
    itk_affine = sitk.AffineTransform(in_lps[:3, :3].ravel().tolist(), in_lps[:3, 3].tolist())
    # ANTs stores [affine, warp]; ITK applies the last one first.
    composite = sitk.CompositeTransform([itk_affine, sitk.ReadTransform(str(tmp_path / "warp.h5"))])
    sitk.WriteTransform(composite, str(tmp_path / "Composite.h5"))
    read = read_field(tmp_path / "Composite.h5")
    expected = linear.apply(affine, transform_points(warp_part, inner_points()))
    assert np.abs(transform_points(read, inner_points()) - expected).max() < 0.01
    np.testing.assert_allclose(read.linear, affine, atol=1e-9)


def test_what_ants_registration_writes_is_read(tmp_path: Path) -> None:
    field, moving = smooth_field(), moving_image()
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(warp(moving, field), tmp_path / "fixed.nii.gz")
    fixed, read = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    result = ants.registration(
        fixed, read, "SyNOnly", initial_transform="Identity", reg_iterations=(5,), outprefix=f"{tmp_path}/r_",
        write_composite_transform=True, random_seed=1,
    )  # fmt: skip
    composite = result["fwdtransforms"]
    path = Path(composite if isinstance(composite, str) else composite[0])
    ours = warp(moving, read_field(path), fill=0.0).data
    theirs = result["warpedmovout"].numpy()
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.quantile(np.abs(ours - theirs)[inside], 0.99) < 1e-3 * np.ptp(moving.data)


def test_intent_1006_is_read_as_ras(tmp_path: Path) -> None:
    vectors = np.zeros((*GRID.shape, 1, 3), np.float32)
    vectors[..., 0] = 2.0
    image = nib.Nifti1Image(vectors, GRID.affine)
    image.header.set_intent("displacement vector")
    nib.save(image, tmp_path / "field.nii.gz")
    theirs = sitk.ReadImage(str(tmp_path / "field.nii.gz"))
    assert theirs.GetPixel(3, 3, 3) == pytest.approx((-2.0, 0.0, 0.0))
    np.testing.assert_allclose(read_field(tmp_path / "field.nii.gz").vectors[3, 3, 3], (2.0, 0.0, 0.0))


def test_a_linear_transform_file_takes_the_given_grid(tmp_path: Path) -> None:
    matrix = linear.rotation((3, 4, 15), (5, 5, 5))
    in_lps = linear.to_lps(matrix)
    transform = sitk.AffineTransform(in_lps[:3, :3].ravel().tolist(), in_lps[:3, 3].tolist())
    sitk.WriteTransform(transform, str(tmp_path / "a.mat"))
    field = read_field(tmp_path / "a.mat", GRID)
    np.testing.assert_allclose(field.vectors, DisplacementField.from_linear(matrix, GRID).vectors, atol=1e-4)
    with pytest.raises(UsageError) as error:
        read_field(tmp_path / "a.mat")
    assert error.value.code == "grid_needed"


def test_a_composed_field_survives_the_disk(tmp_path: Path) -> None:
    pose = DisplacementField.from_linear(linear.rotation((0, 0, 20), (1, 2, 3)), GRID)
    both = compose(smooth_field(), pose)
    write_field(both, tmp_path / "f.nii.gz")
    far = np.random.default_rng(0).uniform(-200, 200, (20, 3))
    np.testing.assert_allclose(
        transform_points(read_field(tmp_path / "f.nii.gz"), far), transform_points(both, far), atol=1e-3
    )


def test_the_same_field_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_field(smooth_field(), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_wrong_files_are_named_by_their_code(tmp_path: Path) -> None:
    write_nifti(moving_image(), tmp_path / "image.nii.gz")
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    content = gzip.compress(b"not a field")
    (tmp_path / "junk.nii.gz").write_bytes(content)
    for name, code in [
        ("image.nii.gz", "not_a_field"),
        ("broken.h5", "bad_transform"),
        ("junk.nii.gz", "unsupported_media"),
    ]:
        with pytest.raises(BadInputError) as error:
            read_field(tmp_path / name)
        assert error.value.code == code
        assert str(tmp_path) not in error.value.message
    with pytest.raises(UsageError) as missing:
        read_field(tmp_path / "none.nii.gz")
    assert missing.value.code == "no_such_file"
    with pytest.raises(UsageError) as ending:
        write_field(smooth_field(), tmp_path / "field.mha")
    assert ending.value.code == "bad_file_name"


def test_a_damaged_h5_is_refused_or_read(tmp_path: Path) -> None:
    write_field(smooth_field(GRID.crop((0, 0, 0), (4, 4, 4))), tmp_path / "field.h5")
    content = (tmp_path / "field.h5").read_bytes()
    refused: list[str] = []
    for seed in range(40):
        rng, damaged = np.random.default_rng(seed), bytearray(content)
        for place in rng.integers(0, len(content), 6):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.h5").write_bytes(bytes(damaged[: len(content) - 200 * (seed % 3)]))
        try:
            read_field(tmp_path / "damaged.h5")
        except BadInputError as error:
            refused.append(error.message)
    assert len(refused) > 5
    assert not any(str(tmp_path) in message for message in refused)


def test_a_warp_that_ants_writes_is_read(tmp_path: Path) -> None:
    moving = moving_image()
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(warp(moving, smooth_field()), tmp_path / "fixed.nii.gz")
    fixed, read = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    result = ants.registration(
        fixed, read, "SyNOnly", initial_transform="Identity", reg_iterations=(5,), outprefix=f"{tmp_path}/r_",
        random_seed=1,
    )  # fmt: skip
    path = next(Path(file) for file in result["fwdtransforms"] if file.endswith("Warp.nii.gz"))
    theirs = ants.apply_transforms(fixed, read, [str(path)]).numpy()
    ours = warp(moving, read_field(path), fill=0.0).data
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.quantile(np.abs(ours - theirs)[inside], 0.99) < 1e-3 * np.ptp(moving.data)


@pytest.mark.parametrize("name", ["field.nii.gz", "field.h5"])
def test_a_real_ct_is_warped_as_simpleitk_warps_it(tmp_path: Path, real_data: Path, name: str) -> None:
    path = real_data / "liver-ct" / "totalsegmentator" / "ct.nii.gz"
    ct = read_volume(path)
    grid = ct.geometry.with_shape((40, 40, 30))
    field = compose(
        DisplacementField.from_linear(linear.rotation((3, -5, 8), grid.centre_mm), grid), smooth_field(grid)
    )
    write_field(field, tmp_path / name)
    write_nifti(Volume(np.zeros(grid.shape, np.float32), grid), tmp_path / "fixed.nii.gz")
    if name.endswith(".h5"):
        transform = sitk.ReadTransform(str(tmp_path / name))
    else:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64))
    image, fixed = sitk.ReadImage(str(path), sitk.sitkFloat32), sitk.ReadImage(str(tmp_path / "fixed.nii.gz"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, fixed, transform, sitk.sitkLinear, -1024.0)).transpose(2, 1, 0)
    ours = warp(ct, field, fill=-1024.0).data
    assert np.quantile(np.abs(ours - theirs), 0.999) < 1e-3 * np.ptp(ct.data)
