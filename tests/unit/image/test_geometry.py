from __future__ import annotations

import itertools

import numpy as np
import pytest

from hepalign.image.geometry import Geometry

AXES = [
    np.array([[sign if axis == row else 0 for axis, sign in zip(order, signs, strict=True)] for row in range(3)], float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oblique() -> Geometry:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    return Geometry.from_spacing((7, 9, 11), (1.3, 2.0, 5.0), origin_mm=(-31, 42, 7), direction=turn)


def test_index_and_world_are_inverse_to_each_other() -> None:
    grid = oblique()
    indices = np.random.default_rng(0).uniform(-5, 15, (20, 3))
    np.testing.assert_allclose(grid.world_to_index(grid.index_to_world(indices)), indices, atol=1e-9)


def test_itk_words_come_back_from_the_affine() -> None:
    grid = oblique()
    np.testing.assert_allclose(grid.spacing_mm, (1.3, 2.0, 5.0))
    np.testing.assert_allclose(grid.origin_mm, (-31, 42, 7))
    np.testing.assert_allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-12)
    assert grid.voxel_volume_mm3 == pytest.approx(13.0)
    np.testing.assert_allclose(grid.extent_mm, (9.1, 18.0, 55.0))


def test_contains_ends_at_the_outer_voxel_centres() -> None:
    grid = Geometry.from_spacing((4, 5, 6), 2.0)
    assert grid.contains([[0, 0, 0], [6, 8, 10], [6.1, 0, 0], [-0.1, 0, 0]]).tolist() == [True, True, False, False]


def test_with_shape_keeps_the_box() -> None:
    grid = oblique()
    other = grid.with_shape((14, 3, 22))
    np.testing.assert_allclose(other.extent_mm, grid.extent_mm)
    np.testing.assert_allclose(other.centre_mm, grid.centre_mm)


def test_crop_with_a_negative_start_pads() -> None:
    grid = oblique()
    padded = grid.crop((-2, 0, 1), (11, 9, 4))
    np.testing.assert_allclose(padded.index_to_world((2, 3, 0)), grid.index_to_world((0, 3, 1)))


def test_same_grid_forgives_a_rounding_and_not_a_shift() -> None:
    grid = oblique()
    nudged = grid.affine.copy()
    nudged[0, 3] += 1e-4
    shifted = grid.affine.copy()
    shifted[0, 3] += 0.2
    assert grid.same_grid(Geometry(grid.shape, nudged))
    assert not grid.same_grid(Geometry(grid.shape, shifted))
    assert not grid.same_grid(Geometry((7, 9, 12), grid.affine))


@pytest.mark.parametrize("shape", [(0, 1, 1), (2, 2), (2, -1, 2)])
def test_a_shape_that_is_no_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"three axes"):
        Geometry(shape, np.eye(4))  # type: ignore[arg-type]


def test_an_affine_with_nan_is_refused_and_the_own_one_is_read_only() -> None:
    broken = np.eye(4)
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Geometry((2, 2, 2), broken)
    with pytest.raises(ValueError, match="read-only"):
        Geometry((2, 2, 2), np.eye(4)).affine[0, 0] = 2
