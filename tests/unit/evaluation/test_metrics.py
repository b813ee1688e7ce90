"""Metrics against values that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hepalign.evaluation import metrics
from hepalign.image.geometry import Geometry
from hepalign.transform.displacement import DisplacementField

GRID = Geometry.from_spacing((24, 20, 16), (2.0, 3.0, 4.0), origin_mm=(5.0, -7.0, 11.0))


def box(i: slice, j: slice, k: slice) -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[i, j, k] = True
    return mask


def test_dice_of_boxes_that_share_half() -> None:
    a = box(slice(4, 12), slice(4, 12), slice(4, 12))
    b = box(slice(8, 16), slice(4, 12), slice(4, 12))
    assert metrics.dice(a, b) == pytest.approx(0.5)
    assert metrics.dice(a, a) == 1.0
    assert metrics.dice(a, box(slice(14, 16), slice(0, 2), slice(0, 2))) == 0.0


def test_hausdorff_of_a_box_shifted_by_two_voxels_is_the_shift() -> None:
    a = box(slice(4, 12), slice(4, 12), slice(4, 12))
    b = box(slice(6, 14), slice(4, 12), slice(4, 12))
    assert metrics.hausdorff_95_mm(a, b, GRID) == pytest.approx(2 * 2.0)
    assert metrics.hausdorff_95_mm(a, a, GRID) == 0.0


def test_surface_distance_counts_spacing_of_its_axis() -> None:
    a = box(slice(2, 22), slice(2, 18), slice(4, 9))
    b = box(slice(2, 22), slice(2, 18), slice(4, 10))
    # one face of each moves by one voxel of 4 mm; every other surface voxel (but the new rim) stays
    distance = metrics.surface_distance_mm(a, b, GRID)
    assert 0 < distance < 4.0
    wider = Geometry.from_spacing(GRID.shape, (2.0, 3.0, 8.0))
    assert metrics.surface_distance_mm(a, b, wider) > distance


def test_distances_between_concentric_balls_are_the_difference_of_their_radii() -> None:
    fine = Geometry.from_spacing((48, 48, 48), 1.0)
    distance_mm = np.linalg.norm(fine.grid_mm() - fine.centre_mm, axis=-1)
    small, large = distance_mm < 15.0, distance_mm < 20.0
    # a voxel's surface is known to half a voxel on either ball
    assert metrics.hausdorff_95_mm(small, large, fine) == pytest.approx(5.0, abs=0.75)
    assert metrics.surface_distance_mm(small, large, fine) == pytest.approx(5.0, abs=0.5)
    assert metrics.dice(small, large) == pytest.approx(2 * 15**3 / (15**3 + 20**3), abs=0.01)


def test_hausdorff_95_leaves_out_a_spike_that_the_maximum_would_not() -> None:
    a = box(slice(4, 20), slice(4, 16), slice(4, 12))
    spiked = a.copy()
    spiked[20:23, 8, 8] = True
    assert metrics.hausdorff_95_mm(spiked, a, GRID) == 0.0


def test_distances_of_an_empty_mask_are_nan_not_zero() -> None:
    nothing, something = np.zeros(GRID.shape, bool), box(slice(4, 8), slice(4, 8), slice(4, 8))
    assert np.isnan(metrics.hausdorff_95_mm(nothing, something, GRID))
    assert np.isnan(metrics.surface_distance_mm(something, nothing, GRID))
    assert metrics.dice(nothing, something) == 0.0


def test_skins_lie_apart_by_what_a_body_moved_and_the_views_end_is_no_skin() -> None:
    body, moved = box(slice(0, 12), slice(None), slice(None)), box(slice(0, 14), slice(None), slice(None))
    everywhere = np.ones(GRID.shape, bool)
    assert metrics.skin_distance_mm(moved, body, everywhere, GRID) == pytest.approx(2 * 2.0)
    assert metrics.skin_distance_mm(body, body, everywhere, GRID) == 0.0
    # nothing of either outline is 10 mm within the view; then one of the two is not
    assert np.isnan(metrics.skin_distance_mm(moved, body, box(slice(10, 20), slice(None), slice(None)), GRID))
    assert np.isnan(metrics.skin_distance_mm(everywhere, body, everywhere, GRID))


def test_landmark_error_is_what_a_constant_field_leaves() -> None:
    vectors = np.broadcast_to(np.float32([3.0, 0.0, 0.0]), (*GRID.shape, 3)).copy()
    field = DisplacementField(vectors, GRID)
    fixed = np.array([[20.0, 10.0, 30.0], [30.0, 20.0, 40.0]])
    moving = fixed + np.array([3.0, 4.0, 0.0])
    np.testing.assert_allclose(metrics.landmark_errors_mm(field, fixed, moving), [4.0, 4.0], atol=1e-4)
    # the other way round would be off by (6, 4, 0)
    np.testing.assert_allclose(metrics.landmark_errors_mm(field, moving, fixed), [52**0.5] * 2, atol=1e-4)


def test_dense_error_is_the_distance_of_the_fields_inside_the_region_only() -> None:
    truth = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    region = box(slice(4, 12), slice(4, 12), slice(4, 12))
    vectors[region] = [0.0, 3.0, 4.0]
    vectors[~region] = 99.0
    errors = metrics.dense_errors_mm(DisplacementField(vectors, GRID), truth, region)
    assert errors.shape == (8**3,)
    np.testing.assert_allclose(errors, 5.0, atol=1e-4)


def test_regularity_of_a_uniform_scaling() -> None:
    scaling = np.diag([1.1, 1.1, 1.1, 1.0])
    found = metrics.regularity(DisplacementField.from_linear(scaling, GRID))
    assert found.folding_fraction == 0.0
    assert found.sd_log_jacobian == pytest.approx(0.0, abs=1e-4)
    assert found.jacobian_min == pytest.approx(1.331, abs=1e-3)
    assert found.jacobian_max == pytest.approx(1.331, abs=1e-3)


def test_sd_log_jacobian_of_a_field_that_grows_along_one_axis() -> None:
    # x -> x + 0.004 x²: J = 1 + 0.008 x, which central differences find exactly inside
    x = GRID.grid_mm()[..., 0] - GRID.centre_mm[0]
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[..., 0] = 0.004 * x**2
    inside = np.zeros(GRID.shape, bool)
    inside[1:-1] = True
    found = metrics.regularity(DisplacementField(vectors, GRID), inside)
    expected = 1 + 0.008 * x[inside]
    assert found.sd_log_jacobian == pytest.approx(float(np.log(expected).std()), abs=1e-5)
    assert found.jacobian_min == pytest.approx(float(expected.min()), abs=1e-5)
    assert found.jacobian_max == pytest.approx(float(expected.max()), abs=1e-5)


def test_a_mirrored_field_folds_everywhere() -> None:
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    found = metrics.regularity(DisplacementField.from_linear(mirror, GRID))
    assert found.folding_fraction == 1.0
    assert found.jacobian_max < 0


def test_inverse_consistency_of_a_field_and_its_inverse_and_of_a_wrong_one() -> None:
    there = np.eye(4)
    there[:3, 3] = [2.0, -1.0, 3.0]
    forward = DisplacementField.from_linear(there, GRID)
    region = np.ones(GRID.shape, bool)
    back = DisplacementField.from_linear(np.linalg.inv(there), GRID)
    assert metrics.inverse_consistency_mm(forward, back, region) == pytest.approx(0.0, abs=1e-4)
    assert metrics.inverse_consistency_mm(forward, forward, region) == pytest.approx(2 * 14**0.5, abs=1e-3)
