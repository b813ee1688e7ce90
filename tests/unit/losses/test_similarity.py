from __future__ import annotations

import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from scipy.ndimage import correlate1d

from hepalign.losses.similarity import (
    lncc_loss,
    mind_loss,
    mind_ssc,
    pooled_mind,
    squared_lncc,
    weighted_mean,
    window_sum,
)


def images(seed: int, shape: tuple[int, ...] = (2, 1, 12, 10, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
def test_window_sum_equals_a_convolution_with_ones(size: int) -> None:
    image, _ = images(0)
    ones = torch.ones(1, 1, size, size, size)
    expected = torch.nn.functional.conv3d(image, ones, padding=size // 2)
    torch.testing.assert_close(window_sum(image, size), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_value_and_both_gradients_equal_monai(size: int) -> None:
    a, b = images(1)
    ours = [image.clone().requires_grad_() for image in (a, b)]
    theirs = [image.clone().requires_grad_() for image in (a, b)]
    loss, reference = lncc_loss(*ours, size), LocalNormalizedCrossCorrelationLoss(kernel_size=size)(*theirs)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-7)


def test_gradient_where_only_one_image_needs_it() -> None:
    a, b = images(2)
    a.requires_grad_()
    lncc_loss(a, b, 5).backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


def test_linearly_related_images_correlate_fully_and_flat_ones_not_at_all() -> None:
    a, _ = images(3, (1, 1, 16, 16, 16))
    inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(squared_lncc(a, 3 * a - 1, 5)[inner], torch.ones(1, 1, 12, 12, 12), rtol=0, atol=1e-3)
    assert squared_lncc(a, torch.ones_like(a), 5)[inner].abs().max() < 1e-3


def test_weight_silences_voxels() -> None:
    values = torch.tensor([1.0, 5.0]).view(1, 1, 2, 1, 1)
    weight = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1)
    assert float(weighted_mean(values, weight)) == pytest.approx(1.0)
    assert float(weighted_mean(values, torch.zeros_like(weight))) == 0.0


def test_mind_ignores_a_linear_change_of_contrast() -> None:
    image, _ = images(4, (1, 1, 14, 14, 14))
    torch.testing.assert_close(mind_ssc(image), mind_ssc(-250 * image + 30), rtol=1e-3, atol=1e-3)


def test_mind_has_twelve_channels_whose_best_is_one() -> None:
    image, _ = images(5, (2, 1, 10, 11, 12))
    features = mind_ssc(image, radius=1, dilation=2)
    assert features.shape == (2, 12, 10, 11, 12)
    torch.testing.assert_close(features.amax(1), torch.ones(2, 10, 11, 12))
    assert features.min() >= 0


def test_mind_compares_the_pairs_of_neighbours_it_says() -> None:
    image, _ = images(6, (1, 1, 9, 9, 9))
    x = image[0, 0]
    # radius 0: the first pair is +i and +j around the centre voxel
    neighbours = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    distances = sorted(
        float((x[4 + a[0], 4 + a[1], 4 + a[2]] - x[4 + b[0], 4 + b[1], 4 + b[2]]) ** 2)
        for n, a in enumerate(neighbours)
        for b in neighbours[n + 1 :]
        if sum(p * q for p, q in zip(a, b, strict=True)) == 0
    )
    assert len(distances) == 12
    mean = sum(distances) / 12 - distances[0]
    expected = torch.exp(-(torch.tensor(distances) - distances[0]) / mean)
    found = mind_ssc(image, radius=0)[0, :, 4, 4, 4].sort(descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_mind_loss_is_zero_on_itself_and_its_gradient_is_right() -> None:
    a, b = images(7, (1, 1, 6, 6, 6))
    assert float(mind_loss(a, a)) == 0.0
    assert torch.autograd.gradcheck(lambda t: mind_ssc(t).square().mean(), (b.double().requires_grad_(),), atol=1e-4)


def test_ill_shapes_and_even_windows_are_refused() -> None:
    a, b = images(8)
    with pytest.raises(ValueError, match=r"\(2, 1, 12, 10, 8\)"):
        squared_lncc(a, b[..., :-1])
    with pytest.raises(ValueError, match="odd"):
        squared_lncc(a, b, 4)


def test_pooled_mind_compares_blocks_of_single_differences() -> None:
    image, _ = images(6, (2, 1, 12, 10, 8))
    features = pooled_mind(image)
    assert features.shape == (2, 12, 6, 5, 4)
    # the same by the definition, at the block of voxels (4..5, 4..5, 2..3) of the first image, lightly smoothed
    smoothed = image[0, 0].numpy()
    for axis in range(3):
        smoothed = correlate1d(smoothed, [0.25, 0.5, 0.25], axis, mode="nearest")
    distances = []
    voxels = [(i, j, k) for i in (4, 5) for j in (4, 5) for k in (2, 3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for sign in (1, -1):
            for turned in (1, -1):
                a, b = [0, 0, 0], [0, 0, 0]
                a[first], b[second] = 2, 2 * sign
                ends = (a, b) if turned == 1 else ([-n for n in b], [-n for n in a])
                values = [[float(smoothed[i + e[0], j + e[1], k + e[2]]) for i, j, k in voxels] for e in ends]
                distances.append(sum((x - y) ** 2 for x, y in zip(*values, strict=True)))
    found = torch.tensor(distances)
    expected = torch.exp(-(found - found.min()) / (found - found.min()).mean())
    torch.testing.assert_close(features[0, :, 2, 2, 1], expected, rtol=1e-4, atol=1e-5)
