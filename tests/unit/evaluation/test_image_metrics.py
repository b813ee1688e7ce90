"""Image scores against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from hepalign.evaluation import image_metrics
from hepalign.image.geometry import Geometry

GRID = Geometry.from_spacing((40, 36, 32), (1.0, 1.5, 2.0))
EVERYWHERE = np.ones(GRID.shape, bool)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-100, 200, GRID.shape).astype(np.float32)


def block(start: int) -> np.ndarray:
    image = np.zeros(GRID.shape, np.float32)
    image[start : start + 16, 10:26, 8:24] = 100.0
    return image


def test_mae_of_a_constant_offset_and_only_inside() -> None:
    truth = noise(0)
    image = truth + 7.0
    image[0] = 1e6
    region = EVERYWHERE.copy()
    region[0] = False
    assert image_metrics.mean_absolute_error(image, truth, region) == pytest.approx(7.0, rel=1e-5)
    assert np.isnan(image_metrics.mean_absolute_error(image, truth, ~EVERYWHERE))


def test_psnr_of_a_constant_offset() -> None:
    truth = noise(1)
    found = image_metrics.peak_signal_to_noise_db(truth + 6.0, truth, EVERYWHERE, (-200.0, 400.0))
    assert found == pytest.approx(20 * np.log10(600 / 6), abs=1e-3)
    assert image_metrics.peak_signal_to_noise_db(truth, truth, EVERYWHERE, (-200.0, 400.0)) == np.inf


def test_psnr_judges_inside_the_window_only() -> None:
    truth, image = np.full(GRID.shape, 1000.0), np.full(GRID.shape, 3000.0)
    assert image_metrics.peak_signal_to_noise_db(image, truth, EVERYWHERE, (-200.0, 400.0)) == np.inf


def test_ssim_is_one_for_equal_images_and_near_zero_for_unrelated_noise() -> None:
    span = (-200.0, 400.0)
    assert image_metrics.structural_similarity_in(noise(2), noise(2), EVERYWHERE, span) == pytest.approx(1.0)
    assert abs(image_metrics.structural_similarity_in(noise(2), noise(3), EVERYWHERE, span)) < 0.25


def test_ssim_of_two_constants_is_its_luminance_term() -> None:
    # Wang et al. 2004, equation 6, with C1 = (0.01 L)²; contrast and structure are 1
    a, b, c1 = 100.0, 160.0, (0.01 * 600) ** 2
    found = image_metrics.structural_similarity_in(
        np.full(GRID.shape, a), np.full(GRID.shape, b), EVERYWHERE, (-200.0, 400.0)
    )
    assert found == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), rel=1e-5)


def test_ssim_looks_at_the_region_alone() -> None:
    truth, image, region = noise(4), noise(4), np.zeros(GRID.shape, bool)
    region[4:12, 4:12, 4:12] = True
    image[25:] = 0.0
    assert image_metrics.structural_similarity_in(image, truth, region, (-200.0, 400.0)) == pytest.approx(1.0)


def test_edges_in_place_do_not_drift_whatever_the_contrast() -> None:
    assert image_metrics.edge_drift_mm(block(12), -3 * block(12), GRID, EVERYWHERE) == pytest.approx(0.0, abs=1e-6)


def test_a_boundary_is_found_where_the_image_steps() -> None:
    organ = np.linalg.norm(GRID.grid_mm() - GRID.centre_mm, axis=-1) < 14
    shown = image_metrics.organ_boundary_mm(80.0 * organ, organ, GRID)
    inverted = image_metrics.organ_boundary_mm(-30.0 * organ + noise(5) / 100, organ, GRID)
    larger = np.linalg.norm(GRID.grid_mm() - GRID.centre_mm, axis=-1) < 18
    moved = image_metrics.organ_boundary_mm(80.0 * larger, organ, GRID)
    assert shown < 0.8
    assert inverted < 0.8
    assert moved == pytest.approx(4.0, abs=0.6)
    assert image_metrics.organ_boundary_mm(noise(6), organ, GRID) > 2.5
    assert np.isnan(image_metrics.organ_boundary_mm(80.0 * organ, ~EVERYWHERE, GRID))


def test_edges_drift_by_about_the_shift_of_the_faces_that_moved() -> None:
    near = image_metrics.edge_drift_mm(block(13), block(12), GRID, EVERYWHERE)
    far = image_metrics.edge_drift_mm(block(16), block(12), GRID, EVERYWHERE)
    # two of six faces move by 1 and 4 mm, the others lie along the shift
    assert 0.0 <= near < 1.0
    assert 0.5 < far < 4.0
    assert far > near


def test_no_edges_is_nan() -> None:
    assert np.isnan(image_metrics.edge_drift_mm(np.zeros(GRID.shape), block(12), GRID, EVERYWHERE))


def test_rim_lies_outside_the_hole_and_within_its_width() -> None:
    hole = np.zeros(GRID.shape, bool)
    hole[15:20, 15:20, 15:20] = True
    ring = image_metrics.rim(hole, GRID, width_mm=3.0)
    assert not (ring & hole).any()
    assert ring[12, 17, 17]
    assert not ring[11, 17, 17]
    assert ring[17, 13, 17]
    assert not ring[17, 12, 17]


def test_inpainting_scores_see_hole_and_rim_apart() -> None:
    truth = noise(5)
    hole = np.zeros(GRID.shape, bool)
    hole[15:22, 15:22, 12:18] = True
    image = truth.copy()
    image[hole] += 20.0
    found = image_metrics.inpainting_scores(image, truth, hole, GRID)
    assert found["hole_l1_hu"] == pytest.approx(20.0, rel=0.05)
    assert found["rim_l1_hu"] == 0.0
    assert found["rim_psnr_db"] == np.inf
    assert found["hole_ssim"] < 1.0
