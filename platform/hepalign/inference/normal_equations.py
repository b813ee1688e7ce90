"""The normal equations of matching two feature tables, and the algebra of their symmetric 3 x 3 matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from hepalign.inference.sampling import SLAB_VOXELS


def normal_equations(warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """What a step of Gauss-Newton solves at every voxel, and the summed squared difference; slab by slab.

    Args:
        warped: moving features (D,H,W,C) under the present field.
        fixed: the same shape.
        weight: (D,H,W,1), 0 where the images cannot be compared.

    Returns:
        [9,D,H,W]: the slopes' products along 00, 11, 22, 01, 02, 12, then slope times difference along 0, 1, 2,
        each summed over the channels. The slopes are the mean of both images' (Vercauteren et al. 2009).
    """
    depth, height, width, _channels = fixed.shape
    out = fixed.new_empty(9, depth, height, width)
    planes = max(1, 2 * SLAB_VOXELS // (height * width))
    cost = 0.0
    for start in range(0, depth, planes):
        stop = min(depth, start + planes)
        low, high = max(0, start - 1), min(depth, stop + 1)
        residual = fixed[start:stop] - warped[start:stop]
        mean = warped[low:high] + fixed[low:high]
        slopes = [_slope(mean, axis)[start - low : stop - low] for axis in range(3)]
        weighted = residual * weight[start:stop]
        cost += float((weighted * residual).sum())
        for row, slope in enumerate(slopes):
            torch.sum(slope * weighted, -1, out=out[6 + row, start:stop])
        root = weight[start:stop].sqrt()
        slopes = [slope * root for slope in slopes]
        for row, (a, b) in enumerate(_PRODUCTS):
            torch.sum(slopes[a] * slopes[b], -1, out=out[row, start:stop])
    return out, cost


_PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def _slope(twice: Tensor, axis: int) -> Tensor:
    """Central differences of half of (D,H,W,C) along an axis; half of the one-sided one at the border."""
    n = twice.shape[axis]
    slope = torch.zeros_like(twice)
    if n > 2:
        inner = slope.narrow(axis, 1, n - 2)
        torch.sub(twice.narrow(axis, 2, n - 2), twice.narrow(axis, 0, n - 2), out=inner)
    if n > 1:
        slope.narrow(axis, 0, 1).copy_(twice.narrow(axis, 1, 1)).sub_(twice.narrow(axis, 0, 1))
        slope.narrow(axis, n - 1, 1).copy_(twice.narrow(axis, n - 1, 1)).sub_(twice.narrow(axis, n - 2, 1))
    return slope.mul_(0.25)


def adjugate(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of symmetric matrices [6,…] in the order above: the adjugate's six entries and the determinant."""
    a, b, c, d, e, f = matrix
    aa, dd, ee = b * c - f * f, e * f - c * d, d * f - b * e
    bb, ff, cc = a * c - e * e, d * e - a * f, a * b - d * d
    return aa, bb, cc, dd, ee, ff, a * aa + d * dd + e * ee
