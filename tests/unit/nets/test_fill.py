"""The smooth fill and the harmonised prior."""

from __future__ import annotations

import pytest
import torch

from hepalign.nets.fill import base_image, smooth_fill


def holed(shape: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.ones(1, 1, *shape)
    mask[..., 2:-2, 3:-3, 2:-3] = 0
    return mask


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 13, 11)])
def test_constants_are_kept_and_valid_voxels_never_change(shape: tuple[int, int, int]) -> None:
    mask = holed(shape)
    torch.testing.assert_close(smooth_fill(torch.full_like(mask, 0.7), mask), torch.full_like(mask, 0.7))
    image = torch.randn(1, 1, *shape)
    torch.testing.assert_close(smooth_fill(image, mask) * mask, image * mask)


def test_a_fill_lies_between_the_valid_values_and_follows_a_slope() -> None:
    slope = torch.linspace(-1, 1, 24).view(1, 1, 24, 1, 1).expand(1, 1, 24, 24, 24).contiguous()
    mask = torch.ones_like(slope)
    mask[..., 8:16, 8:16, 8:16] = 0
    filled = smooth_fill(slope, mask)
    assert filled.abs().max() <= 1
    assert ((filled - slope).abs() * (1 - mask)).max() < 0.25
    flat_error = (slope[..., 8:16, 8:16, 8:16]).abs().max()
    assert ((filled - slope).abs() * (1 - mask)).max() < flat_error


def test_it_is_linear_and_blind_to_the_hole() -> None:
    mask = holed((10, 12, 14))
    first, second = torch.randn(2, 1, 1, 10, 12, 14).unbind(0)
    torch.testing.assert_close(
        smooth_fill(2 * first - second, mask), 2 * smooth_fill(first, mask) - smooth_fill(second, mask)
    )
    torch.testing.assert_close(smooth_fill(first + 1e3 * (1 - mask), mask), smooth_fill(first, mask))


def test_nothing_valid_gives_zero() -> None:
    assert (smooth_fill(torch.ones(1, 1, 5, 5, 5), torch.zeros(1, 1, 5, 5, 5)) == 0).all()


def test_a_prior_is_harmonised_and_unknown_priors_are_left_out() -> None:
    mask = holed((12, 12, 12))
    truth = torch.randn(2, 1, 12, 12, 12)
    mask = mask.expand_as(truth)
    prior_mask = torch.ones_like(mask).clone()
    prior_mask[1] = 0
    base = base_image(truth * mask, mask, truth - 0.4, prior_mask)
    torch.testing.assert_close(base[0], truth[0])
    torch.testing.assert_close(base[1], smooth_fill(truth, mask)[1])
