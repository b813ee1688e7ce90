"""Mutual information of two images by Parzen soft bins, in memory that does not grow with bins x voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Intensities are binned through a table with this many levels a bin, linearly interpolated: error below 1e-3.
LEVELS_PER_BIN = 32
_TINY = 1e-7


def mutual_information(
    first: Tensor,
    second: Tensor,
    *,
    bins: int = 32,
    width: float = 0.5,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """I = sum p(x, y) log(p(x, y) / (p(x) p(y))) in nats per sample of the batch, float32 [B] (SCIENCE: L_MI is -I).

    Each voxel is shared out among `bins` evenly spaced bins by a Gaussian whose sigma is `width` bin distances,
    normalised over the bins, so that I has a gradient everywhere. Voxels enter through a fine joint histogram H and a
    table T of bin weights per fine level, p = T^T H T, so that work and memory per voxel do not depend on the bins.

    Args:
        first, second: float [B, ...] of equal shapes, values within `value_range` (others go to the outermost bins).
    """
    if first.shape != second.shape:
        raise ValueError(f"images of different shapes: {tuple(first.shape)} and {tuple(second.shape)}")
    low, high = value_range
    scaled = [((image.float() - low) / (high - low)).flatten(1) for image in (first, second)]
    with torch.autocast(first.device.type, enabled=False):
        joint = _JointHistogram.apply(scaled[0], scaled[1], bins, width)
        independent = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        information: Tensor = (joint * ((joint + _TINY) / (independent + _TINY) + _TINY).log()).sum((1, 2))
        return information


def subsample(images: list[Tensor], count: int, generator: torch.Generator) -> list[Tensor]:
    """The same `count` voxels (all, when there are fewer) of each image [B, 1, D, H, W], as [B, count].

    Args:
        generator: on the CPU, so that a resumed run draws the same voxels.
    """
    voxels = images[0][0].numel()
    if voxels <= count:
        return [image.flatten(1) for image in images]
    chosen = torch.randint(voxels, (count,), generator=generator).to(images[0].device)
    return [image.flatten(1)[:, chosen] for image in images]


class _JointHistogram(torch.autograd.Function):
    """[B, N] x [B, N] in [0, 1] to the joint density [B, bins, bins]."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, bins: int, width: float) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.bins, ctx.width = bins, width
        weights, _ = _tables(bins, width, first)
        levels = len(weights)
        corners, shares = _corners(first, second, levels)
        fine = first.new_zeros(first.shape[0], levels * levels)
        fine.scatter_add_(1, corners.flatten(1), shares.flatten(1))
        joint: Tensor = weights.T @ fine.view(-1, levels, levels) @ weights
        return joint / first.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, second = ctx.saved_tensors
        weights, slopes = _tables(ctx.bins, ctx.width, first)
        corners, shares = _corners(first, second, len(weights))
        gradient = gradients[0] / first.shape[1]
        found: list[Tensor | None] = [None, None]
        for index, (left, right) in enumerate(((slopes, weights), (weights, slopes))):
            if ctx.needs_input_grad[index]:
                # what a voxel's gradient would be at every pair of fine levels
                table = (left @ gradient @ right.T).flatten(1)
                found[index] = (table.gather(1, corners.flatten(1)).view_as(shares) * shares).sum(1)
        return found[0], found[1], None, None


def _corners(first: Tensor, second: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The four fine cells around each voxel's pair of intensities, [B, 4, N]: their flat indices and shares."""
    places, fractions = [], []
    for image in (first, second):
        position = (image * (levels - 1)).clamp(0, levels - 1)
        lower = position.floor().clamp_max(levels - 2)
        places.append(lower.long())
        fractions.append(position - lower)
    base = places[0] * levels + places[1]
    a, b = fractions
    corners = torch.stack([base, base + 1, base + levels, base + levels + 1], dim=1)
    return corners, torch.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], dim=1)


def _tables(bins: int, width: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Bin weights at every fine level, and their derivatives, [levels, bins]; levels run from 0 to 1.

    A weight is exp(-(x - c)^2 / (2 sigma^2)) normalised over the bins' centres c: the softmax of
    (2 x c - c^2) / (2 sigma^2), since what depends on x alone cancels.
    """
    sigma = width / (bins - 1)
    levels = torch.linspace(0, 1, LEVELS_PER_BIN * (bins - 1) + 1, device=like.device, dtype=like.dtype)
    centres = torch.linspace(0, 1, bins, device=like.device, dtype=like.dtype)
    weights = ((2 * levels[:, None] * centres - centres.square()) / (2 * sigma**2)).softmax(1)
    slopes = weights * (centres - (weights @ centres)[:, None]) / sigma**2
    return weights, slopes
