"""Each of the five losses against its formula written out, and the known bugs of other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from hepalign.losses.inpainting import (
    InpaintingWeights,
    compose,
    gram,
    hole_loss,
    inpainting_terms,
    perceptual_loss,
    style_loss,
    total_variation_loss,
    valid_loss,
)


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.rand(2, 2, 1, 6, 5, 4, generator=generator)
    return output, target, (torch.rand(2, 1, 6, 5, 4, generator=generator) > 0.3).float()


def test_default_weights_are_the_papers() -> None:
    weights = InpaintingWeights()
    terms = {name: torch.tensor(1.0) for name in ("valid", "hole", "perceptual", "style_out", "style_comp", "tv")}
    assert weights.total(terms).item() == pytest.approx(1 + 6 + 0.05 + 120 * 2 + 0.1)
    with pytest.raises(ValidationError):
        InpaintingWeights(hole=-1)


def test_valid_and_hole_are_averaged_over_all_voxels(images: tuple[Tensor, Tensor, Tensor]) -> None:
    output, target, mask = (image.numpy() for image in images)
    voxels = output.size
    assert valid_loss(*images).item() == pytest.approx(np.abs(mask * (output - target)).sum() / voxels, rel=1e-5)
    assert hole_loss(*images).item() == pytest.approx(np.abs((1 - mask) * (output - target)).sum() / voxels, rel=1e-5)


def test_composed_is_the_target_outside_and_the_output_inside(images: tuple[Tensor, Tensor, Tensor]) -> None:
    output, target, mask = images
    composed = compose(output, target, mask)
    torch.testing.assert_close(composed[mask > 0], target[mask > 0])
    torch.testing.assert_close(composed[mask == 0], output[mask == 0])


def test_perceptual_sums_both_images_over_layers_averaged_within() -> None:
    out, comp, gt = (
        [torch.full((1, 2, 3, 3), a), torch.full((1, 4, 2, 2), b)] for a, b in ((1.0, 5.0), (2.0, 3.0), (0.0, 1.0))
    )
    # layer 1: |1-0| + |2-0|, layer 2: |5-1| + |3-1|
    assert perceptual_loss(out, comp, gt).item() == pytest.approx(1 + 2 + 4 + 2)


def test_out_and_comp_are_not_swapped() -> None:
    # With a mask that is 1 everywhere comp equals the truth, so the perceptual loss is out's part alone; the style of
    # out is then not 0 and that of comp is.
    generator = torch.Generator().manual_seed(1)
    output, target = torch.rand(2, 1, 1, 8, 8, 8, generator=generator)

    def extractor(volume: Tensor) -> list[Tensor]:
        return [torch.cat([volume, 2 * volume], dim=1)]

    terms = inpainting_terms(output, target, torch.ones_like(output), extractor, lambda volumes: volumes)
    assert terms["style_comp"].item() == 0
    assert terms["style_out"].item() > 0
    assert terms["perceptual"].item() == pytest.approx(1.5 * (output - target).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_gram_is_divided_by_channels_and_positions(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape)
    flat = features.flatten(2).numpy()
    size = np.prod(shape[1:])
    expected = np.einsum("bcn,bdn->bcd", flat, flat) / size
    np.testing.assert_allclose(gram(features).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_style_divides_by_the_squared_channels_once() -> None:
    features, target = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    difference = np.abs(gram(features).numpy() - gram(target).numpy())
    assert style_loss([features], [target]).item() == pytest.approx(difference.sum() / 3**2, rel=1e-5)


def test_style_goes_with_the_square_of_the_features_scale() -> None:
    features, target = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    small, large = style_loss([features], [target]), style_loss([10 * features], [10 * target])
    assert large.item() == pytest.approx(100 * small.item(), rel=1e-4)


def test_style_is_computed_in_float32_under_autocast() -> None:
    # 64 x 64 products of values near 100 sum to 4e7, far above fp16's 65504.
    features = torch.full((1, 2, 64, 64), 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        matrix = gram(features.bfloat16())
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, torch.full((1, 2, 2), 100.0**2 / 2), rtol=1e-4, atol=0)


def test_total_variation_looks_only_at_the_hole_and_one_voxel_around() -> None:
    mask = torch.ones(1, 1, 9, 9, 9)
    mask[..., 4, 4, 4] = 0
    composed = torch.zeros(1, 1, 9, 9, 9)
    composed[..., 0, 0, 0] = 100.0
    composed[..., 2, 4, 4] = 50.0
    assert total_variation_loss(composed, mask).item() == 0
    composed[..., 4, 4, 4] = 1.0
    # six neighbours, all within the dilated hole, over all 729 voxels
    assert total_variation_loss(composed, mask).item() == pytest.approx(6 / 729)


def test_total_variation_counts_all_three_axes_of_a_slope() -> None:
    # A hole in the middle of a plane wave: along each axis the dilated 5 x 5 x 5 region holds 4 x 25 pairs.
    mask = torch.ones(1, 1, 9, 9, 9)
    mask[..., 3:6, 3:6, 3:6] = 0
    for axis, step in ((2, 1.0), (3, 2.0), (4, 3.0)):
        shape = [1] * 5
        shape[axis] = 9
        slope = (torch.arange(9.0) * step).view(shape).expand_as(mask)
        assert total_variation_loss(slope, mask).item() == pytest.approx(step * 4 * 25 / 729)


def test_terms_are_float32_and_reach_the_output(images: tuple[Tensor, Tensor, Tensor]) -> None:
    output, target, mask = images
    output = output.bfloat16().requires_grad_()
    terms = inpainting_terms(output, target, mask, lambda volume: [volume.square()], lambda volumes: volumes)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_a_perfect_output_costs_nothing_but_its_own_variation(images: tuple[Tensor, Tensor, Tensor]) -> None:
    _, target, mask = images
    terms = inpainting_terms(target, target, mask, lambda volume: [volume], lambda volumes: volumes)
    assert {name for name, term in terms.items() if term.item() != 0} == {"tv"}
