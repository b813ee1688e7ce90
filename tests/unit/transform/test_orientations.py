"""Fields and images in every orientation, moved by SimpleITK, ANTs and a plain nibabel reading as by us.

Points within 0.01 mm, images within 1e-3 of their range, at every voxel whose place no rounding can put on either side
of an image's border.
"""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField, transform_points
from hepalign.transform.files import read_field, write_field
from hepalign.transform.linear import rotation
from hepalign.transform.warp import warp

POINT_MM, IMAGE_SHARE = 0.01, 1e-3
ORIENTATIONS = [
    np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]
OBLIQUE = rotation((17, -31, 48))[:3, :3]
DIRECTIONS = [*ORIENTATIONS, OBLIQUE, OBLIQUE @ np.diag([1.0, -1.0, 1.0])]
NAMES = [*map(str, range(48)), "oblique", "oblique-left-handed"]
SPACING_MM = (1.1, 2.3, 4.9)


def grid(direction: NDArray[np.float64]) -> Geometry:
    """9 x 10 x 7 voxels about (21, -33, 140) mm."""
    middle = direction @ (np.asarray(SPACING_MM) * (4.0, 4.5, 3.0))
    return Geometry.from_spacing((9, 10, 7), SPACING_MM, origin_mm=(21, -33, 140) - middle, direction=direction)


def field_on(geometry: Geometry) -> DisplacementField:
    x, y, z = np.moveaxis(geometry.grid_mm(), -1, 0)
    u = np.stack([2.7 * np.sin(y / 9), -1.9 * np.cos(z / 12), 3.1 * np.sin(x / 8 + 1)], axis=-1)
    return DisplacementField(u.astype(np.float32), geometry)


def moving_on(geometry: Geometry) -> Volume:
    x, y, z = np.moveaxis(geometry.grid_mm(), -1, 0)
    return Volume((300 * np.sin(x / 7) + 200 * np.cos(y / 6) + 9 * z).astype(np.float32), geometry)


def points_in(geometry: Geometry) -> NDArray[np.float64]:
    share = np.random.default_rng(11).uniform(0.02, 0.98, (40, 3))
    return geometry.index_to_world(share * (np.asarray(geometry.shape) - 1))


def lps(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points * (-1, -1, 1)


def surely_inside(moving: Geometry, field: DisplacementField) -> NDArray[np.bool_]:
    """Where x + u(x) lies among the moving voxels' centres, a hundredth of a voxel from the outermost at least."""
    at = moving.world_to_index(field.geometry.grid_mm() + field.vectors)
    return np.asarray(((at > 0.01) & (at < np.asarray(moving.shape) - 1.01)).all(axis=-1))


def agree(theirs: NDArray[np.float64], ours: Volume, moving: Volume, inside: NDArray[np.bool_]) -> None:
    assert inside.mean() > 0.2
    assert np.abs(theirs - ours.as_float())[inside].max() < IMAGE_SHARE * np.ptp(moving.as_float())


@pytest.mark.parametrize("direction", DIRECTIONS, ids=NAMES)
def test_simpleitk_and_nibabel_agree_in_every_orientation(tmp_path: Path, direction: NDArray[np.float64]) -> None:
    field = field_on(grid(direction))
    # the moving image lies in another of the orientations
    moving = moving_on(grid(direction[[1, 2, 0]] * (1, -1, 1)))
    points, inside, ours = points_in(field.geometry), surely_inside(moving.geometry, field), warp(moving, field)
    moved = transform_points(field, points)
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(ours, tmp_path / "fixed.nii.gz")
    image, fixed = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("moving", "fixed"))
    for name in ("field.nii.gz", "field.h5"):
        write_field(field, tmp_path / name)
        back = read_field(tmp_path / name)
        np.testing.assert_array_equal(back.vectors, field.vectors)
        np.testing.assert_allclose(back.geometry.affine, field.geometry.affine, atol=1e-4)
        if name.endswith(".h5"):
            transform = sitk.ReadTransform(str(tmp_path / name))
        else:
            transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64))
        theirs = lps(np.array([transform.TransformPoint(point) for point in lps(points).tolist()]))
        assert np.linalg.norm(theirs - moved, axis=1).max() < POINT_MM
        warped = sitk.GetArrayFromImage(sitk.Resample(image, fixed, transform, sitk.sitkLinear)).transpose(2, 1, 0)
        agree(warped, ours, moving, inside)
    read = nib.load(tmp_path / "field.nii.gz")
    vectors = np.asarray(read.dataobj, dtype=np.float64)[:, :, :, 0] * (-1, -1, 1)
    at = nib.affines.apply_affine(np.linalg.inv(read.affine), points)
    shift = np.stack([ndimage.map_coordinates(vectors[..., axis], at.T, order=1) for axis in range(3)], axis=-1)
    assert np.linalg.norm(points + shift - moved, axis=1).max() < POINT_MM
    image_by_nibabel = nib.load(tmp_path / "moving.nii.gz")
    where = nib.affines.apply_affine(read.affine, np.moveaxis(np.indices(vectors.shape[:3]), 0, -1)) + vectors
    index = nib.affines.apply_affine(np.linalg.inv(image_by_nibabel.affine), where)
    warped = ndimage.map_coordinates(
        np.asarray(image_by_nibabel.dataobj, np.float64), np.moveaxis(index, -1, 0), order=1
    )
    agree(warped, ours, moving, inside)


@pytest.mark.parametrize("which", [5, 14, 23, 38, 48, 49])
def test_ants_agrees_in_several_orientations(tmp_path: Path, which: int) -> None:
    field = field_on(grid(DIRECTIONS[which]))
    moving = moving_on(grid(DIRECTIONS[which - 3]))
    points, inside, ours = points_in(field.geometry), surely_inside(moving.geometry, field), warp(moving, field)
    write_nifti(moving, tmp_path / "moving.nii.gz")
    write_nifti(ours, tmp_path / "fixed.nii.gz")
    image, fixed = (ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in ("moving", "fixed"))
    for name in ("field.nii.gz", "field.h5"):
        write_field(field, tmp_path / name)
        warped = ants.apply_transforms(fixed, image, [str(tmp_path / name)], interpolator="linear").numpy()
        agree(warped, ours, moving, inside)
    table = pd.DataFrame(lps(points), columns=["x", "y", "z"])
    theirs = ants.apply_transforms_to_points(3, table, [str(tmp_path / "field.nii.gz")]).to_numpy()[:, :3]
    assert np.linalg.norm(lps(theirs) - transform_points(field, points), axis=1).max() < POINT_MM
