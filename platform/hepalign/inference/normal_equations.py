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
    depth, height, width, channels = fixed.shape
    out = fixed.new_empty(9, depth, height, width)
    ones = fixed.new_ones(channels)
    planes = max(1, 2 * SLAB_VOXELS // (height * width))
    cost = 0.0
    for start in range(0, depth, planes):
        stop = min(depth, start + planes)
        low, high = max(0, start - 1), min(depth, stop + 1)
        residual = fixed[start:stop] - warped[start:stop]
        mean = warped[low:high] + fixed[low:high]
        # of both images' sum over two voxels: four times the slope of their mean
        rise = [_rise(mean, 0)[start - low : stop - low], *(_rise(mean[start - low : stop - low], a) for a in (1, 2))]
        scratch, here = torch.empty_like(residual), weight[start:stop, :, :, 0]

        def summed(first: Tensor, second: Tensor, scratch: Tensor = scratch) -> Tensor:
            # a product with ones: twice as fast as a sum over so few channels
            return torch.mv(torch.mul(first, second, out=scratch).view(-1, channels), ones)

        for row, (first, second) in enumerate(_PRODUCTS):
            torch.mul(summed(rise[first], rise[second]).view(here.shape), here / 16, out=out[row, start:stop])
        for axis in range(3):
            torch.mul(summed(rise[axis], residual).view(here.shape), here / 4, out=out[6 + axis, start:stop])
        cost += float((summed(residual, residual).view(here.shape) * here).sum())
    return out, cost


_PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def _rise(image: Tensor, axis: int) -> Tensor:
    """The next voxel's values less the one's before, (D,H,W,C) along an axis; beyond the border it goes on level."""
    last = image.shape[axis] - 1
    rise = torch.empty_like(image)
    if last == 0:
        return rise.zero_()
    torch.sub(image.narrow(axis, 2, last - 1), image.narrow(axis, 0, last - 1), out=rise.narrow(axis, 1, last - 1))
    torch.sub(image.narrow(axis, 1, 1), image.narrow(axis, 0, 1), out=rise.narrow(axis, 0, 1))
    torch.sub(image.narrow(axis, last, 1), image.narrow(axis, last - 1, 1), out=rise.narrow(axis, last, 1))
    return rise


def adjugate(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of symmetric matrices [6,…] in the order above: the adjugate's six entries and the determinant."""
    a, b, c, d, e, f = matrix
    aa, dd, ee = b * c - f * f, e * f - c * d, d * f - b * e
    bb, ff, cc = a * c - e * e, d * e - a * f, a * b - d * d
    return aa, bb, cc, dd, ee, ff, a * aa + d * dd + e * ee
