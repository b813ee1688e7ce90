"""Mutual information of two images by Parzen soft bins, in memory that does not grow with bins x voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Voxels handled at a time: their bin weights (2 x 8192 x 32 floats) stay in a core's cache.
CHUNK_VOXELS = 8192
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
    normalised over the bins, so that I has a gradient everywhere. Bin weights are made for a chunk of voxels at a
    time and made again in the backward pass.

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
    """[B, N] x [B, N] in [0, 1] to the joint density [B, bins, bins]; summed over voxels chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, bins: int, width: float) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.bins, ctx.width = bins, width
        voxels = first.shape[1]
        joint = first.new_zeros(first.shape[0], bins, bins)
        for start in range(0, voxels, CHUNK_VOXELS):
            a, b = (_bin_weights(image[:, start : start + CHUNK_VOXELS], bins, width) for image in (first, second))
            joint.baddbmm_(a.transpose(1, 2), b)
        return joint / voxels

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, second = ctx.saved_tensors
        gradient = gradients[0] / first.shape[1]
        wanted = ctx.needs_input_grad[:2]
        found = [torch.empty_like(first) if want else None for want in wanted]
        for start in range(0, first.shape[1], CHUNK_VOXELS):
            chunk = slice(start, start + CHUNK_VOXELS)
            a, b = (_bin_weights(image[:, chunk], ctx.bins, ctx.width) for image in (first, second))
            if found[0] is not None:
                found[0][:, chunk] = _through_bins(a, b @ gradient.transpose(1, 2), ctx.width)
            if found[1] is not None:
                found[1][:, chunk] = _through_bins(b, a @ gradient, ctx.width)
        return found[0], found[1], None, None


def _bin_weights(values: Tensor, bins: int, width: float) -> Tensor:
    """exp(-(x - c)^2 / (2 sigma^2)) normalised over the bins' centres c, [B, n, bins].

    That is the softmax of (2 x c - c^2) / (2 sigma^2): what depends on x alone cancels.
    """
    centres = torch.linspace(0, 1, bins, device=values.device, dtype=values.dtype)
    precision = _precision(bins, width)
    logits = torch.addcmul(-precision * centres.square(), values.unsqueeze(-1), 2 * precision * centres)
    return logits.softmax(-1)


def _through_bins(weights: Tensor, gradient: Tensor, width: float) -> Tensor:
    """The gradient of the values from that of their bin weights: 2 p (E[c g] - E[c] E[g]) under the weights."""
    bins = weights.shape[-1]
    centres = torch.linspace(0, 1, bins, device=weights.device, dtype=weights.dtype)
    weighted = weights * gradient
    mean_centre, mean_product = weights @ centres, weighted @ centres
    return 2 * _precision(bins, width) * (mean_product - mean_centre * weighted.sum(-1))


def _precision(bins: int, width: float) -> float:
    """1 / (2 sigma^2) of the unit range."""
    sigma = width / (bins - 1)
    return 1 / (2 * sigma**2)
