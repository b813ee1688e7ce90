from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform import linear
from hepalign.transform.displacement import (
    DisplacementField,
    compose,
    invert,
    nearest_linear,
    resample_field,
    sample,
    transform_points,
)
from hepalign.transform.warp import warp

TURN = linear.rotation((12, -7, 25))[:3, :3]
GRID = Geometry.from_spacing((32, 28, 20), (2.0, 2.5, 4.0), origin_mm=(-30, -40, -35), direction=TURN)


def breathing(geometry: Geometry, amplitude_mm: float = 12.0) -> DisplacementField:
    """A closed-form smooth field: a wave along z with a third of it in y."""
    x, y, z = np.moveaxis(geometry.grid_mm(), -1, 0)
    wave = amplitude_mm * np.cos(x / 40) * np.cos(y / 45) * np.cos(z / 50)
    return DisplacementField(np.stack([0.2 * wave, wave / 3, wave], axis=-1).astype(np.float32), geometry)


def around(centre_mm: np.ndarray, shape: tuple[int, int, int], spacing_mm: float) -> Geometry:
    origin = centre_mm - spacing_mm * (np.asarray(shape) - 1) / 2
    return Geometry.from_spacing(shape, spacing_mm, origin_mm=origin)


def points_inside(geometry: Geometry, count: int = 200, margin: float = 0.2) -> np.ndarray:
    share = np.random.default_rng(0).uniform(margin, 1 - margin, (count, 3))
    return geometry.index_to_world(share * (np.asarray(geometry.shape) - 1))


def test_a_field_samples_to_its_own_voxels() -> None:
    field = breathing(GRID)
    at = np.array([[0, 0, 0], [31, 27, 19], [4, 5, 6]])
    np.testing.assert_allclose(sample(field, GRID.index_to_world(at)), field.vectors[tuple(at.T)], atol=1e-3)


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="on a grid of shape"):
        DisplacementField(np.zeros((3, 3, 3, 3), np.float32), GRID)
    with pytest.raises(ValueError, match="float32"):
        DisplacementField(np.zeros((*GRID.shape, 3)), GRID)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 x 4"):
        DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID, np.full((4, 4), np.nan))


def test_outside_the_grid_the_linear_part_goes_on() -> None:
    matrix = linear.rotation((0, 0, 30), (5, 5, 5)) @ linear.translation((3, 0, -2))
    field = DisplacementField.from_linear(matrix, GRID)
    far = np.random.default_rng(0).uniform(-300, 300, (50, 3))
    np.testing.assert_allclose(transform_points(field, far), linear.apply(matrix, far), atol=2e-3)


def test_outside_the_grid_the_border_residual_holds() -> None:
    matrix = linear.rotation((0, 0, 30))
    residual = np.zeros((*GRID.shape, 3), np.float32)
    residual[-1] = (1.0, 2.0, 3.0)
    field = DisplacementField(DisplacementField.from_linear(matrix, GRID).vectors + residual, GRID, matrix)
    beyond = GRID.index_to_world([[60, 10, 10], [32.5, 3, 19]])
    np.testing.assert_allclose(
        transform_points(field, beyond), linear.apply(matrix, beyond) + residual[-1, 0, 0], atol=1e-3
    )


def test_composition_maps_points_one_after_the_other() -> None:
    other = Geometry.from_spacing((30, 30, 30), 3.0, origin_mm=(-45, -45, -45))
    outer, inner = breathing(other, 8.0), breathing(GRID)
    points = GRID.index_to_world(np.argwhere(np.ones((6, 6, 6))) + 10)
    both = transform_points(outer, transform_points(inner, points))
    np.testing.assert_allclose(transform_points(compose(outer, inner), points), both, atol=1e-3)


def test_composition_of_linear_fields_is_the_product_everywhere() -> None:
    a, b = linear.rotation((0, 20, 5), (1, 2, 3)), linear.translation((30, -40, 5)) @ linear.rotation((8, 0, 0))
    both = compose(DisplacementField.from_linear(a, GRID), DisplacementField.from_linear(b, GRID))
    far = np.random.default_rng(0).uniform(-200, 200, (50, 3))
    np.testing.assert_allclose(transform_points(both, far), linear.apply(a @ b, far), atol=5e-3)
    np.testing.assert_allclose(both.linear, a @ b)


def test_compose_then_resample_once_equals_the_analytic_answer() -> None:
    moving_grid = around(GRID.centre_mm, (64, 64, 64), 2.2)
    outer, inner = breathing(moving_grid, 6.0), breathing(GRID, 9.0)

    def pattern(points: np.ndarray) -> np.ndarray:
        return np.asarray(np.sin(points[..., 0] / 17) + np.cos(points[..., 1] / 21) + points[..., 2] / 40)

    moving = Volume(pattern(moving_grid.grid_mm()).astype(np.float32), moving_grid)
    once = warp(moving, compose(outer, inner)).data

    def displaced(points: np.ndarray, amplitude: float) -> np.ndarray:
        x, y, z = np.moveaxis(points, -1, 0)
        wave = amplitude * np.cos(x / 40) * np.cos(y / 45) * np.cos(z / 50)
        return points + np.stack([0.2 * wave, wave / 3, wave], axis=-1)

    analytic = pattern(displaced(displaced(GRID.grid_mm(), 9.0), 6.0))
    inside = np.s_[8:-8, 8:-8, 5:-5]
    # Of the pattern's range: what linear interpolation of image and field leaves at 2-4 mm.
    assert np.abs(once - analytic)[inside].max() < 5e-3 * np.ptp(analytic)
    twice = warp(warp(moving, outer), inner).data
    assert np.abs(once - analytic)[inside].mean() < np.abs(twice - analytic)[inside].mean()


@pytest.mark.parametrize("pose_deg", [0, 40, 90])
def test_inverse_closes_within_a_tenth_of_a_millimetre(pose_deg: int) -> None:
    pose = linear.rotation((0, 0, pose_deg), GRID.centre_mm) @ linear.translation((4, -3, 9))
    field = compose(DisplacementField.from_linear(pose, GRID), breathing(GRID, 15.0))
    target = around(linear.apply(pose, GRID.centre_mm), (40, 40, 40), 3.0)
    inverse = invert(field, target)
    points = points_inside(GRID)
    back = transform_points(inverse, transform_points(field, points))
    assert np.linalg.norm(back - points, axis=1).max() < 0.1
    there = transform_points(field, transform_points(inverse, target.grid_mm().reshape(-1, 3)))
    assert np.linalg.norm(there - target.grid_mm().reshape(-1, 3), axis=1).max() < 0.1
    np.testing.assert_allclose(inverse.linear @ field.linear, np.eye(4), atol=1e-9)


@pytest.mark.parametrize(
    ("spacing_mm", "amplitude_mm"), [((2.8, 2.8, 2.8), 25.0), ((4.0, 4.0, 4.0), 15.0), ((1.3, 1.3, 5.0), 15.0)]
)
def test_there_and_back_closes_between_voxels_too(spacing_mm: tuple[float, float, float], amplitude_mm: float) -> None:
    shape = tuple(int(np.ceil(100 / s)) for s in spacing_mm)
    grid = Geometry.from_spacing((shape[0], shape[1], shape[2]), spacing_mm, origin_mm=(-50, -50, -50), direction=TURN)
    field = breathing(grid, amplitude_mm)
    inverse, points = invert(field), points_inside(grid, 2000, 0.3)
    for first, second in ((field, inverse), (inverse, field)):
        back = transform_points(second, transform_points(first, points))
        assert np.linalg.norm(back - points, axis=1).max() < 0.1


def test_inverse_of_a_rough_field_closes_too() -> None:
    noise = np.random.default_rng(0).normal(size=(*GRID.shape, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 1.5, 0))
    field = DisplacementField((smooth / np.abs(smooth).max() * 6).astype(np.float32), GRID)
    closed = compose(field, invert(field)).vectors
    assert np.linalg.norm(closed, axis=-1).max() < 0.1


def test_a_field_on_another_grid_is_the_same_map() -> None:
    field = breathing(GRID)
    fine = resample_field(field, GRID.with_shape((64, 56, 40)))
    points = points_inside(GRID)
    np.testing.assert_allclose(transform_points(fine, points), transform_points(field, points), atol=0.02)
    assert resample_field(field, GRID) is field


def test_nearest_linear_is_the_map_itself_for_a_linear_field() -> None:
    matrix = linear.rotation((5, 6, 70)) @ linear.translation((1, 2, 3))
    np.testing.assert_allclose(nearest_linear(DisplacementField.from_linear(matrix, GRID)), matrix, atol=1e-3)


def test_read_only_vectors_are_left_alone(recwarn: pytest.WarningsRecorder) -> None:
    field = breathing(GRID)
    field.vectors.flags.writeable = False
    compose(field, field)
    invert(field)
    warp(Volume(field.vectors[..., 0], GRID), field)
    assert not [w for w in recwarn.list if "not writable" in str(w.message)]
