"""Noise goes at every scale; borders and vessels stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepalign.cases.sources.denoise import denoise

SPACING_MM = (1.5, 1.5, 2.5)


def _noise(seed: int, grain_mm: float) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((48, 40, 28)).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, [grain_mm / s for s in SPACING_MM])
    return noise * np.float32(15 / noise.std())


@pytest.mark.parametrize("grain_mm", [0.3, 1.5])
def test_noise_goes_fine_or_coarse(grain_mm: float) -> None:
    smooth = denoise(60 + _noise(0, grain_mm), SPACING_MM)[6:-6, 6:-6, 4:-4]
    assert smooth.std() < 2.5
    assert abs(smooth.mean() - 60) < 1.5


def test_borders_and_vessels_stay() -> None:
    x, y, _ = np.ogrid[:48, :40, :28]
    clean = np.where(x < 24, -100.0, 60.0) + np.where(np.hypot(x - 36, y - 20) * 1.5 < 4, 70.0, 0.0) * np.ones(
        (1, 1, 28)
    )
    smooth = denoise((clean + _noise(1, 0.5)).astype(np.float32), SPACING_MM)
    inner = smooth[:, 6:-6, 4:-4]
    assert inner[25:27].mean() - inner[21:23].mean() > 120
    assert smooth[36, 20, 4:-4].mean() - smooth[36, 6:10, 4:-4].mean() > 45
    assert inner[5:15].std() < 2


def test_a_scan_s_padding_and_a_flat_image_do_no_harm() -> None:
    assert np.array_equal(denoise(np.full((8, 8, 8), -3024, np.float32), (3, 3, 3)), np.full((8, 8, 8), -1024))
