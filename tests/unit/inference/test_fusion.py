"""What a coarse mask still shows corrects a fill's misaligned edges, and brings neither streaks nor metal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.fusion import STREAKS_HU, fuse

SIZE_MM = 90.0


def grid(*spacing_mm: float) -> Geometry:
    shape = tuple(round(SIZE_MM / s) for s in spacing_mm)
    return Geometry((shape[0], shape[1], shape[2]), np.diag([*spacing_mm, 1.0]))


def wall_at(x_mm: float, geometry: Geometry, step_hu: float = 160.0) -> NDArray[np.float32]:
    """Liver of 60 HU beside fat (or what else is so much darker), with a voxel's partial volume between them."""
    x = geometry.grid_mm()[..., 0]
    share = np.clip((x - x_mm) / geometry.spacing_mm[0] + 0.5, 0, 1)
    return (60 - step_hu * share).astype(np.float32)


def hole_in(geometry: Geometry) -> Volume:
    inside = np.zeros(geometry.shape, bool)
    inside[tuple(slice(n // 4, n - n // 4) for n in geometry.shape)] = True
    return Volume(inside, geometry)


def streaks(geometry: Geometry, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 20, geometry.shape).astype(np.float32)


def rms(values: NDArray[np.float32], hole: Volume) -> float:
    return float(np.sqrt(np.square(values[hole.as_mask()]).mean()))


GRIDS = {"2.8 mm": grid(2.8, 2.8, 2.8), "1.4 mm": grid(1.4, 1.4, 1.4), "thick slices": grid(1.4, 1.4, 5.0)}


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(("step_hu", "left"), [(160.0, 0.75), (300.0, 0.45)])
def test_a_wall_that_the_prior_has_elsewhere_is_put_right(geometry: Geometry, step_hu: float, left: float) -> None:
    truth, off = wall_at(45.0, geometry, step_hu), wall_at(48.5, geometry, step_hu)
    hole = hole_in(geometry)
    ict = truth + streaks(geometry)
    fused = fuse(Volume(ict, geometry), hole, Volume(off, geometry)).as_float()
    assert rms(fused - truth, hole) < left * rms(off - truth, hole)


def test_the_weight_is_that_of_two_measurements() -> None:
    geometry = GRIDS["2.8 mm"]
    ramp = (10 * geometry.grid_mm()[..., 0] - 300).astype(np.float32)  # 10 HU/mm: 28 HU if 2.8 mm off
    fused = fuse(Volume(ramp + 40, geometry), hole_in(geometry), Volume(ramp, geometry)).as_float()
    assert fused[16, 16, 16] - ramp[16, 16, 16] == pytest.approx(40 * 28**2 / (28**2 + STREAKS_HU**2), rel=1e-3)


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS)
def test_where_the_fill_has_no_edge_no_streak_comes_in(geometry: Geometry) -> None:
    hole = hole_in(geometry)
    noisy = 60 + streaks(geometry, 1)  # the prior's own noise is no edge
    ict = 60 + 4 * streaks(geometry, 2)
    fused = fuse(Volume(ict, geometry), hole, Volume(noisy, geometry)).as_float()
    assert rms(fused - noisy, hole) < 0.25 * rms(ict - noisy, hole)
    flat = np.full(geometry.shape, 60, np.float32)
    kept = fuse(Volume(ict, geometry), hole, Volume(flat, geometry)).as_float()
    np.testing.assert_array_equal(kept, flat)


def test_outside_the_hole_every_bit_is_kept_and_nothing_is_written_into_the_inputs() -> None:
    geometry = GRIDS["2.8 mm"]
    hole, filled = hole_in(geometry), Volume(wall_at(48.5, geometry), geometry)
    ict = Volume(wall_at(45.0, geometry) + streaks(geometry), geometry)
    before = ict.as_float().copy(), filled.as_float().copy()
    fused = fuse(ict, hole, filled).as_float()
    outside = ~hole.as_mask()
    np.testing.assert_array_equal(fused[outside], filled.as_float()[outside])
    np.testing.assert_array_equal(ict.as_float(), before[0])
    np.testing.assert_array_equal(filled.as_float(), before[1])


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS)
def test_metal_and_what_touches_it_stay_filled(geometry: Geometry) -> None:
    hole, off = hole_in(geometry), wall_at(48.5, geometry)
    ict = wall_at(45.0, geometry)
    i, j, k = (n // 2 for n in geometry.shape)
    ict[i, j - 1 : j + 2, k] = 3000
    fused = fuse(Volume(ict, geometry), hole, Volume(off, geometry)).as_float()
    for place in ((i, j, k), (i + 1, j, k), (i - 1, j, k), (i, j, k + 1), (i, j - 2, k)):
        assert fused[place] == off[place]
    assert np.abs(fused - wall_at(45.0, geometry)).max() <= 160


def test_a_single_slice_is_fused_too() -> None:
    geometry = Geometry((32, 32, 1), np.diag([2.8, 2.8, 5.0, 1.0]))
    hole = Volume(np.ones(geometry.shape, bool), geometry)
    truth, off = wall_at(45.0, geometry), wall_at(48.5, geometry)
    fused = fuse(Volume(truth, geometry), hole, Volume(off, geometry)).as_float()
    assert rms(fused - truth, hole) < 0.75 * rms(off - truth, hole)
