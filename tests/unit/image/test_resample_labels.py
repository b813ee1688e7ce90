"""Labels by their shape: closer to the truth than voxels, no value lost or mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.nifti import read_nifti
from hepalign.image.resample import resample
from hepalign.image.resample_labels import resample_labels
from hepalign.image.volume import Volume
from hepalign.transform.linear import rotation

TURN = rotation((12, -8, 20))[:3, :3]


def thick_grid(spacing_mm: tuple[float, float, float], extent_mm: float = 90.0) -> Geometry:
    shape = np.ceil(extent_mm / np.asarray(spacing_mm)).astype(int)
    origin = -TURN @ (shape * np.asarray(spacing_mm) / 2)
    return Geometry.from_spacing(tuple(shape.tolist()), spacing_mm, direction=TURN, origin_mm=origin)


def liver_like(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    x, y, z = np.moveaxis(points, -1, 0)
    body = (x / 32) ** 2 + (y / 24) ** 2 + (z / 27) ** 2 < 1
    notch = ((x + 11) / 10) ** 2 + ((y - 16) / 10) ** 2 + ((z + 16) / 12) ** 2 < 1
    return np.asarray(body & ~notch)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(("spacing_mm", "least"), [((1.25, 1.25, 7.7), 0.97), ((1.3, 1.3, 5.0), 0.98)])
def test_a_thick_oblique_label_keeps_its_shape(spacing_mm: tuple[float, float, float], least: float) -> None:
    source = thick_grid(spacing_mm)
    fine = Geometry.from_spacing((48, 48, 48), 1.8, origin_mm=(-42, -42, -42))
    drawn, truth = Volume(liver_like(source.grid_mm()), source), liver_like(fine.grid_mm())
    by_shape = dice(resample_labels(drawn, fine).as_mask(), truth)
    by_voxel = dice(resample(drawn, fine, mode="nearest", fill=0).as_mask(), truth)
    assert by_shape > least
    # half of the error that nearest neighbour makes
    assert 1 - by_shape < 0.6 * (1 - by_voxel)


def test_every_value_stays_itself_and_neighbours_leave_no_gap() -> None:
    source = thick_grid((2, 2, 4))
    inside = liver_like(source.grid_mm())
    left = source.grid_mm()[..., 0] < 0
    drawn = Volume(np.where(inside, np.where(left, 7, 300), 0).astype(np.int16), source)
    fine = Geometry.from_spacing((40, 40, 40), 2.0, origin_mm=(-40, -40, -40))
    read = resample_labels(drawn, fine)
    assert read.data.dtype == np.int16
    assert set(np.unique(read.data)) == {0, 7, 300}
    whole = resample_labels(drawn.with_data(inside), fine).as_mask()
    assert (whole & (read.data == 0)).sum() < 0.005 * whole.sum()


@pytest.mark.parametrize(("shift_mm", "spacing_mm"), [(2.0, 4.0), (-1.0, 2.0)])
def test_borders_on_voxel_centres_neither_shrink_nor_grow_it(shift_mm: float, spacing_mm: float) -> None:
    source = Geometry.from_spacing((20, 20, 20), 4.0, origin_mm=(-38, -38, -38))
    ball = Volume(np.linalg.norm(source.grid_mm(), axis=-1) < 24, source)
    count = int(80 / spacing_mm)
    other = Geometry.from_spacing((count,) * 3, spacing_mm, origin_mm=np.full(3, -38 + shift_mm))
    read = resample_labels(ball, other).as_mask().sum() * spacing_mm**3
    assert read == pytest.approx(ball.as_mask().sum() * 4.0**3, rel=0.03)


def test_a_label_of_one_voxel_does_not_vanish() -> None:
    source = Geometry.from_spacing((9, 9, 9), 2.0)
    data = np.zeros(source.shape, np.uint8)
    data[4, 4, 4], data[2, 2, 2] = 1, 2
    coarse = Geometry.from_spacing((6, 6, 6), 3.0, origin_mm=(1, 1, 1))
    assert set(np.unique(resample_labels(Volume(data, source), coarse).data)) == {0, 1, 2}


def test_a_label_that_fills_its_image_or_lies_elsewhere() -> None:
    source = Geometry.from_spacing((8, 8, 8), 2.0)
    full = Volume(np.ones(source.shape, bool), source)
    inside = Geometry.from_spacing((5, 5, 5), 1.0, origin_mm=(4, 4, 4))
    assert resample_labels(full, inside).as_mask().all()
    away = Geometry.from_spacing((5, 5, 5), 1.0, origin_mm=(400, 4, 4))
    assert not resample_labels(full, away).as_mask().any()
    assert resample_labels(full, source).data is full.data


def test_a_real_thick_liver_is_the_liver_again_on_its_own_grid(real_data: Path) -> None:
    """There and back: CHAOS labels at 1.25 x 1.25 x 7.7 mm through an isotropic grid."""
    drawn = read_nifti(sorted(real_data.glob("chaos-mr/*/organs.nii.gz"))[1])
    extent = np.asarray(drawn.geometry.extent_mm)
    shape = tuple(int(n) for n in np.ceil(extent / 2.5))
    isotropic = drawn.geometry.with_shape((shape[0], shape[1], shape[2]))
    back = resample_labels(resample_labels(drawn, isotropic), drawn.geometry)
    assert set(np.unique(back.data)) == set(np.unique(drawn.data))
    assert dice(back.data == 1, drawn.data == 1) > 0.98
