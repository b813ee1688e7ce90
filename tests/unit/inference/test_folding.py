from __future__ import annotations

import numpy as np
import torch

from hepalign.image.geometry import Geometry
from hepalign.inference.folding import corner_determinants, unfold
from hepalign.inference.sampling import smooth_rows
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.jacobian import fold_mask


def rough_field(seed: int, amplitude: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(16, 16, 16, 3, generator=generator)
    field = smooth_rows(noise, 1.5)
    return field * (amplitude / field.std())


def test_the_least_corner_determinant_agrees_with_the_fold_mask() -> None:
    field = rough_field(0, 1.2)
    folds = fold_mask(DisplacementField(field.numpy(), Geometry.from_spacing((16, 16, 16), 1.0)))
    assert folds.any()
    np.testing.assert_array_equal((corner_determinants(field) <= 0).numpy(), folds)


def test_a_checkerboard_that_central_differences_miss_is_seen() -> None:
    field = torch.zeros(8, 8, 8, 3)
    field[::2, ..., 0] = 1.2
    assert (corner_determinants(field) <= 0).any()


def test_unfolding_ends_every_fold() -> None:
    for seed in range(3):
        assert corner_determinants(unfold(rough_field(seed, 1.5), 0.1)).min() >= 0.1


def test_what_does_not_fold_is_left_alone() -> None:
    field = rough_field(1, 0.2)
    assert unfold(field) is field
    local = torch.zeros(24, 24, 24, 3)
    local[12, 12, 12] = 3.0
    mended = unfold(local)
    assert corner_determinants(mended).min() > 0
    assert float(mended[:4].abs().max()) == 0.0
