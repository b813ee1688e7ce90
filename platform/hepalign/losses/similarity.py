"""How alike two images are: local normalised cross-correlation and MIND-SSC, by box filters.

A box filter with zeros outside is its own adjoint, so each gradient below is written with the same filter and no
intermediate tensor is kept by autograd. Everything is float32: a bfloat16 variance would cancel to nothing.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The variance floor of MONAI's LocalNormalizedCrossCorrelationLoss, of sums over the window.
LNCC_VARIANCE_FLOOR = 1e-5
MIND_CHANNELS = 12


def window_sum(image: Tensor, size: int) -> Tensor:
    """Sum over a cube of `size` (odd) voxels around each voxel, zeros outside; [B,C,D,H,W] to the same shape.

    Each axis is summed by doubling (sums of 1, 2, 4 … neighbours), log2(size) additions instead of size.
    """
    for axis in (2, 3, 4):
        image = _window_sum_along(image, axis, size)
    return image


def _window_sum_along(image: Tensor, axis: int, size: int) -> Tensor:
    if size == 1:
        return image
    length, reach = image.shape[axis], size // 2
    pad = [0, 0] * (4 - axis) + [reach, reach]
    run = F.pad(image, pad)  # run[i] holds the sum of `width` voxels from i on
    total: Tensor | None = None
    start, width, rest = 0, 1, size
    while True:
        if rest & 1:
            part = run.narrow(axis, start, length)
            total = part if total is None else total + part
            start += width
        rest >>= 1
        if not rest:
            break
        shorter = run.shape[axis] - width
        run = run.narrow(axis, 0, shorter) + run.narrow(axis, width, shorter)
        width *= 2
    assert total is not None
    return total


class _SquaredLNCC(torch.autograd.Function):
    """Voxelwise squared local NCC and its analytic gradient with respect to both images."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, size: int) -> Tensor:
        count = float(size**3)
        sums = window_sum(
            torch.cat([prediction, target, prediction * prediction, target * target, prediction * target], 1), size
        )
        p_sum, t_sum, pp, tt, pt = torch.split(sums, prediction.shape[1], dim=1)
        cross = pt.addcmul(p_sum, t_sum, value=-1 / count)
        p_var = pp.addcmul(p_sum, p_sum, value=-1 / count)
        t_var = tt.addcmul(t_sum, t_sum, value=-1 / count)
        p_live, t_live = p_var > LNCC_VARIANCE_FLOOR, t_var > LNCC_VARIANCE_FLOOR
        p_var, t_var = p_var.clamp_min(LNCC_VARIANCE_FLOOR), t_var.clamp_min(LNCC_VARIANCE_FLOOR)
        ratio = cross / (p_var * t_var)
        squared = cross * ratio
        ctx.size = size
        ctx.save_for_backward(
            prediction, target, p_sum, t_sum, ratio, squared / p_var * p_live, squared / t_var * t_live
        )
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        prediction, target, p_sum, t_sum, ratio, p_share, t_share = ctx.saved_tensors
        channels, count = prediction.shape[1], float(ctx.size**3)
        # d ncc / d p_k = Σ_windows 2 ratio (t_k − t̄) − 2 ncc/p_var (p_k − p̄), each sum a box filter
        along = 2 * grad * ratio
        p_pull, t_pull = 2 * grad * p_share, 2 * grad * t_share
        wanted_p, wanted_t = ctx.needs_input_grad[:2]
        fields = [along]
        if wanted_p:
            fields += [p_pull, (p_pull * p_sum - along * t_sum) / count]
        if wanted_t:
            fields += [t_pull, (t_pull * t_sum - along * p_sum) / count]
        summed = list(torch.split(window_sum(torch.cat(fields, 1), ctx.size), channels, dim=1))
        along_sum = summed.pop(0)
        grad_p = grad_t = None
        if wanted_p:
            pull, offset = summed.pop(0), summed.pop(0)
            grad_p = along_sum * target - pull * prediction + offset
        if wanted_t:
            pull, offset = summed.pop(0), summed.pop(0)
            grad_t = along_sum * prediction - pull * target + offset
        return grad_p, grad_t, None


def squared_lncc(prediction: Tensor, target: Tensor, size: int = 9) -> Tensor:
    """Squared local NCC at every voxel, in [0, 1] (Avants et al. 2008, doi 10.1016/j.media.2007.06.004).

    Args:
        prediction: [B,C,D,H,W] float32.
        target: the same shape.
        size: edge of the cubic window in voxels, odd.

    Raises:
        ValueError: when the shapes differ or `size` is even.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"local NCC of shapes {tuple(prediction.shape)} and {tuple(target.shape)}")
    if size % 2 == 0:
        raise ValueError(f"the window of local NCC has an odd edge, got {size}")
    result: Tensor = _SquaredLNCC.apply(prediction.float(), target.float(), size)
    return result


def lncc_loss(prediction: Tensor, target: Tensor, size: int = 9, weight: Tensor | None = None) -> Tensor:
    """Minus the (weighted) mean of `squared_lncc`; `weight` [B,1,D,H,W] keeps artefacts from voting."""
    return -weighted_mean(squared_lncc(prediction, target, size), weight)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over everything, or the mean weighted by [B,1,D,H,W] (0 where all weights are 0)."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp_min(1e-6)


def mind_ssc(image: Tensor, radius: int = 1, dilation: int = 1) -> Tensor:
    """MIND self-similarity context (Heinrich et al. 2013, doi 10.1007/978-3-642-40811-3_24).

    Twelve patch distances between neighbours of a voxel, relative to their mean (a local noise estimate), as
    exp(−d/mean): indifferent to contrast, so that another phase or modality still agrees. Of the twelve pairs of
    neighbours √2 apart two at a time have the same offset, so six difference images are filtered and each is read
    at two places.

    Args:
        image: [B,1,D,H,W] float32.
        radius: the patch is a cube of 2 radius + 1 voxels.
        dilation: distance of the neighbours in voxels.

    Returns:
        [B,12,D,H,W] in (0, 1].
    """
    shape = image.shape[2:]
    padded = F.pad(image, [2 * dilation + radius] * 6, mode="replicate")
    halo = 2 * (dilation + radius)

    def part(source: Tensor, offset: list[int], extra: int) -> Tensor:
        for axis, (start, length) in enumerate(zip(offset, shape, strict=True)):
            source = source.narrow(axis + 2, dilation + start, length + extra)
        return source

    distances = []
    for first, second in combinations(range(3), 2):
        for sign in (1, -1):
            a, b, still = [0, 0, 0], [0, 0, 0], [0, 0, 0]
            a[first], b[second] = dilation, sign * dilation
            offset = [q - p for p, q in zip(a, b, strict=True)]
            square = (part(padded, still, halo) - part(padded, offset, halo)).square()
            patches = _valid_window_sum(square, 2 * radius + 1)
            distances += [part(patches, a, 0), part(patches, [-q for q in b], 0)]
    return _likeness(torch.cat(distances, 1))


def pooled_mind(image: Tensor) -> Tensor:
    """MIND-SSC at half the resolution, its patches being the blocks of 2³ voxels: [B,1,D,H,W] to [B,12,D/2,H/2,W/2].

    The differences are taken between single voxels two apart, before anything is averaged, which keeps the vessels
    that a coarser image has lost: measured on training cases, a registration on it errs by a fifth to a third less
    than on MIND-SSC of the averaged image. MIND divides by the differences' own mean, so that in flat tissue noise
    alone would speak as loud as anatomy: a light smoothing before it takes a tenth off the error (measured, pooled
    over phantoms; none lost on real CT). Even shapes only.
    """
    shape = [n + 4 for n in image.shape[2:]]
    half = [n // 2 for n in image.shape[2:]]
    padded = F.pad(_binomial(image), [4] * 6, mode="replicate")

    def part(offset: list[int]) -> Tensor:
        source = padded
        for axis, start in enumerate(offset):
            source = source.narrow(axis + 2, 2 + start, shape[axis])
        return source

    def at(blocks: Tensor, place: list[int]) -> Tensor:
        for axis, step in enumerate(place):
            blocks = blocks.narrow(axis + 2, 1 + step, half[axis])
        return blocks

    distances = []
    for first, second in combinations(range(3), 2):
        for sign in (1, -1):
            a, b = [0, 0, 0], [0, 0, 0]
            a[first], b[second] = 1, sign
            offset = [2 * (q - p) for p, q in zip(a, b, strict=True)]
            blocks = _block_sum((part([0, 0, 0]) - part(offset)).square())
            distances += [at(blocks, a), at(blocks, [-q for q in b])]
    return _likeness(torch.cat(distances, 1))


def voxel_mind(image: Tensor) -> Tensor:
    """MIND-SSC at the image's own resolution, its patches single voxels of the lightly smoothed image.

    Patches of 3³ voxels blur what the finest level is there for: measured on development pairs, refinement on them
    gains nothing on phantoms and half as much on real CT.
    """
    return mind_ssc(_binomial(image), radius=0)


def _binomial(image: Tensor) -> Tensor:
    """Smoothed by (1, 2, 1)/4 along each axis (a deviation of 0.7 voxels), the border's value outside."""
    for axis in (2, 3, 4):
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = 1
        padded = F.pad(image, padding, mode="replicate")
        pairs = padded.narrow(axis, 0, image.shape[axis] + 1) + padded.narrow(axis, 1, image.shape[axis] + 1)
        image = (pairs.narrow(axis, 0, image.shape[axis]) + pairs.narrow(axis, 1, image.shape[axis])) / 4
    return image


def _block_sum(image: Tensor) -> Tensor:
    """Sums over blocks of 2³ voxels."""
    for axis in (2, 3, 4):
        every = (slice(None),) * axis
        image = image[(*every, slice(0, None, 2))] + image[(*every, slice(1, None, 2))]
    return image


def _likeness(distances: Tensor) -> Tensor:
    """exp(−d/noise) of patch distances [B,12,D,H,W], the noise being their mean; the nearest patch has 1."""
    least = distances.amin(1, keepdim=True)
    noise = distances.mean(1, keepdim=True) - least
    typical = noise.mean(dim=(1, 2, 3, 4), keepdim=True)
    noise = torch.maximum(torch.minimum(noise, typical * 1000), (typical * 1e-3).clamp_min(1e-12))
    if distances.requires_grad:
        return torch.exp((least - distances) / noise)
    return distances.sub_(least).div_(noise.neg_()).exp_()


def _valid_window_sum(image: Tensor, size: int) -> Tensor:
    """Sum over cubes of `size` voxels that lie inside: each axis is `size` - 1 shorter."""
    for axis in (2, 3, 4):
        length = image.shape[axis] - size + 1
        total = image.narrow(axis, 0, length)
        for step in range(1, size):
            total = total + image.narrow(axis, step, length)
        image = total
    return image


def mind_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(Weighted) mean squared difference of the two images' MIND-SSC."""
    return weighted_mean((mind_ssc(prediction) - mind_ssc(target)).square(), weight)
