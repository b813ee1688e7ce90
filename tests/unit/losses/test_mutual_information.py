"""Mutual information by soft bins: closed forms, gradients, memory."""

from __future__ import annotations

import math

import pytest
import torch

from hepalign.losses import mutual_information as module
from hepalign.losses.mutual_information import mutual_information, subsample


def test_equal_images_of_separate_levels_have_the_entropy_of_the_levels() -> None:
    # Eight levels on bin centres, far narrower bins: I(X, X) = H(X) = log 8.
    levels = torch.arange(8).repeat(64).view(1, -1).float() / 7 * 2 - 1
    assert mutual_information(levels, levels, bins=8, width=0.1).item() == pytest.approx(math.log(8), abs=1e-3)


def test_independent_images_share_nothing() -> None:
    first = torch.linspace(-1, 1, 16).repeat(16).view(1, -1)
    second = torch.linspace(-1, 1, 16).repeat_interleave(16).view(1, -1)
    assert mutual_information(first, second, bins=16).item() == pytest.approx(0, abs=1e-4)


def test_it_does_not_care_about_inverted_or_bent_contrast_and_falls_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 20000, generator=generator) * 2 - 1
    same, inverted = mutual_information(image, image), mutual_information(image, -image)
    torch.testing.assert_close(same, inverted, rtol=1e-3, atol=0)
    noisy = (image + 0.3 * torch.randn(1, 20000, generator=generator)).clamp(-1, 1)
    assert mutual_information(image, noisy) < 0.5 * same


def test_value_and_gradient_follow_the_definition() -> None:
    # The Parzen estimate written out with the whole voxels x bins matrix, differentiated by autograd.
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(1, 1, 12, 11, 10, generator=generator)
    second = (0.9 * first.square() + 0.1 * torch.rand(first.shape, generator=generator)).requires_grad_()
    centres = torch.linspace(0, 1, 23)

    def shares(image: torch.Tensor) -> torch.Tensor:
        kernel = torch.exp(-((image.view(-1, 1) - centres) ** 2) / (2 * (0.5 / 22) ** 2))
        return kernel / kernel.sum(1, keepdim=True)

    joint = shares(second).T @ shares(first) / first.numel()
    expected = (joint * (joint / (joint.sum(1, keepdim=True) * joint.sum(0) + 1e-12) + 1e-12).log()).sum()
    (expected_gradient,) = torch.autograd.grad(expected, second)
    found = mutual_information(second, first, bins=23, width=0.5, value_range=(0.0, 1.0)).sum()
    (gradient,) = torch.autograd.grad(found, second)
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-3 * float(expected_gradient.abs().max()))


def test_gradients_of_both_images() -> None:
    # The histogram's own backward pass against finite differences wide enough to see past the table's levels.
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(2, 10, dtype=torch.double, generator=generator).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, b: module._JointHistogram.apply(a, b, 6, 0.5), images, eps=2e-2, atol=5e-2, rtol=5e-2
    )


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_bins() -> None:
    first, second = torch.rand(1, 50000), torch.rand(1, 50000, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mutual_information(first, second, bins=64)
    # both images, and a few 64 x 64 histograms; bins x voxels would be 3.2 million
    assert sum(kept) < 4 * 50000 + 20 * 64 * 64


def test_subsampling_takes_the_same_voxels_of_every_image() -> None:
    image = torch.arange(2 * 1000.0).view(2, 1, 10, 10, 10)
    first, second = subsample([image, -image], 100, torch.Generator().manual_seed(0))
    assert first.shape == (2, 100)
    torch.testing.assert_close(first, -second)
    torch.testing.assert_close(first[1] - first[0], torch.full((100,), 1000.0))
    assert subsample([image], 5000, torch.Generator())[0].shape == (2, 1000)


def test_a_subsample_is_close_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 1, 40, 40, 40, generator=generator) * 2 - 1
    other = image.square() * 2 - 1
    whole = mutual_information(image, other)
    part = mutual_information(*subsample([image, other], 20000, generator))
    torch.testing.assert_close(part, whole, rtol=0.03, atol=0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 5\)"):
        mutual_information(torch.zeros(1, 4), torch.zeros(1, 5))
