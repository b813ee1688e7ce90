from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepalign.image.geometry import Geometry
from hepalign.transform import linear
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.jacobian import fold_mask, folding_fraction, jacobian_determinants

OBLIQUE = linear.rotation((20, -30, 50))[:3, :3]
GRIDS = [
    Geometry.from_spacing((8, 9, 7), (1.0, 2.0, 5.0), direction=OBLIQUE),
    Geometry.from_spacing((8, 9, 7), 2.0, direction=np.diag([-1.0, 1.0, 1.0])),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_an_affine_field_has_its_matrix_determinant_everywhere(grid: Geometry) -> None:
    matrix = linear.about(OBLIQUE @ np.diag([1.2, 0.9, 0.8]), (3, 4, 5))
    field = DisplacementField.from_linear(matrix, grid)
    np.testing.assert_allclose(jacobian_determinants(field), 1.2 * 0.9 * 0.8, rtol=1e-4)
    assert not fold_mask(field).any()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mirror_folds_everywhere(grid: Geometry) -> None:
    field = DisplacementField.from_linear(linear.about(np.diag([-1.0, 1.0, 1.0]), (0, 0, 0)), grid)
    np.testing.assert_allclose(jacobian_determinants(field), -1, rtol=1e-4)
    assert folding_fraction(field) == 1.0


def test_a_checkerboard_folds_though_central_differences_see_none() -> None:
    grid = Geometry.from_spacing((8, 8, 8), 1.0)
    vectors = np.zeros((8, 8, 8, 3), np.float32)
    vectors[::2, ..., 0] = 1.2
    field = DisplacementField(vectors, grid)
    assert jacobian_determinants(field)[1:-1].min() == pytest.approx(1.0)
    assert fold_mask(field).all()


def test_one_swapped_pair_is_found_with_its_neighbours_only() -> None:
    grid = Geometry.from_spacing((9, 9, 9), 1.0)
    vectors = np.zeros((9, 9, 9, 3), np.float32)
    vectors[4, 4, 4, 0], vectors[5, 4, 4, 0] = 1.5, -1.5
    mask = fold_mask(DisplacementField(vectors, grid))
    assert mask[4, 4, 4]
    assert mask[5, 4, 4]
    assert not mask[:3].any()
    assert not mask[7:].any()


def test_a_slide_of_less_than_a_voxel_does_not_fold() -> None:
    grid = Geometry.from_spacing((8, 8, 8), 1.0)
    vectors = np.zeros((8, 8, 8, 3), np.float32)
    vectors[4:, ..., 2] = 20.0
    assert not fold_mask(DisplacementField(vectors, grid)).any()


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(*GRIDS[0].shape, 3)).astype(np.float32)
    field = DisplacementField(vectors, GRIDS[0])
    whole, determinants = fold_mask(field), jacobian_determinants(field)
    monkeypatch.setattr("hepalign.transform.jacobian.CHUNK_VOXELS", 1)
    np.testing.assert_array_equal(fold_mask(field), whole)
    np.testing.assert_array_equal(jacobian_determinants(field), determinants)
    assert 0 < whole.mean() < 1


@pytest.mark.parametrize("seed", range(12))
def test_what_is_passed_over_as_smooth_does_not_fold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    pose = linear.rotation(rng.uniform(-180, 180, 3))
    pose[:3, :3] @= np.eye(3) + rng.normal(size=(3, 3)) * 0.15
    if seed % 4 == 0:
        pose[:3, 0] *= -1
    direction = linear.rotation(rng.uniform(-180, 180, 3))[:3, :3]
    grid = Geometry.from_spacing((14, 12, 10), tuple(rng.uniform(0.7, 5, 3)), direction=direction)
    bends = ndimage.gaussian_filter(rng.normal(size=(*grid.shape, 3)), (1, 1, 1, 0)) * rng.uniform(0, 6)
    straight = DisplacementField.from_linear(pose, grid)
    monkeypatch.setattr("hepalign.transform.jacobian.CHUNK_VOXELS", 1)
    for linear_part in (pose, np.eye(4)):
        field = DisplacementField(straight.vectors + bends.astype(np.float32), grid, linear_part)
        found = fold_mask(field)
        with monkeypatch.context() as everywhere:
            everywhere.setattr("hepalign.transform.jacobian.SOUND", 0.0)
            np.testing.assert_array_equal(fold_mask(field), found)


def test_fraction_counts_only_where_it_is_asked() -> None:
    grid = Geometry.from_spacing((9, 9, 9), 1.0)
    vectors = np.zeros((9, 9, 9, 3), np.float32)
    vectors[4, 4, 4, 0], vectors[5, 4, 4, 0] = 1.5, -1.5
    field = DisplacementField(vectors, grid)
    where = np.zeros(grid.shape, bool)
    assert folding_fraction(field, where) == 0.0
    where[4, 4, 4:6] = True
    assert folding_fraction(field, where) == 0.5


def test_a_flat_grid_has_no_change_across_it() -> None:
    grid = Geometry.from_spacing((5, 5, 1), 1.0)
    np.testing.assert_allclose(jacobian_determinants(DisplacementField.identity(grid)), 1.0)
