"""Instance refinement: the field itself optimised for one pair, by Gauss-Newton on MIND-SSC.

Each step solves every voxel's normal equations pooled over its neighbourhood (Lucas & Kanade 1981) with symmetric
forces (the mean of both images' slopes, Vercauteren et al. 2009, doi 10.1016/j.neuroimage.2008.10.040), smooths the
step (fluid), composes it onto the field, and smooths the field a little (diffusion). Voxels of the probe and its
artefact have weight 0, so the field runs through the hole on regularity alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hepalign.inference.sampling import SLAB_VOXELS, from_rows, index_rows, read_at, smooth, smooth_rows, to_rows


@dataclass(frozen=True)
class RefineSettings:
    """How a level is refined; lengths in voxels of that level.

    Args:
        steps: at most so many.
        pool_sigma: neighbourhood over which the normal equations are pooled.
        fluid_sigma: smoothing of each step.
        elastic_sigma: smoothing of the field after each step.
        elastic_share: how much of that smoothing is taken.
        damping: added to the diagonal of twelve channels' normal equations.
        max_step_voxels: longest step.
        plateau: share of the cost that four steps must gain to go on.
    """

    steps: int = 16
    pool_sigma: float = 2.8
    fluid_sigma: float = 1.15
    elastic_sigma: float = 1.15
    elastic_share: float = 0.45
    damping: float = 0.01
    max_step_voxels: float = 0.8
    plateau: float = 2e-3


# What precedes the network, at a quarter of the resolution.
COARSE = RefineSettings(steps=8)


@dataclass(frozen=True)
class Refined:
    """The field (D,H,W,3) in voxels, the mean cost before and after, and the steps taken."""

    field: Tensor
    cost_before: float
    cost_after: float
    steps: int


@torch.inference_mode()
def refine(
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    field: Tensor,
    settings: RefineSettings,
    deadline: float | None = None,
) -> Refined:
    """Improve `field` so that moving(x + field(x)) ≈ fixed(x).

    Args:
        moving: feature table (D,H,W,C).
        fixed: the same shape.
        weight: (D,H,W,1), 0 where the images cannot be compared.
        field: start, (D,H,W,3) in voxels.
        settings: steps, smoothing, damping.
        deadline: `time.perf_counter()` at which to stop with what has been reached.
    """
    grid = index_rows(fixed.shape)
    total = float(weight.sum()) * fixed.shape[-1] + 1e-6
    best, costs = field, list[float]()
    for step in range(settings.steps + 1):
        equations, cost = _normal_equations(read_at(moving, grid + field), fixed, weight)
        cost /= total
        if not costs or cost < min(costs):
            best = field
        costs.append(cost)
        flat = len(costs) > 4 and costs[-5] - cost <= settings.plateau * costs[-5]
        late = deadline is not None and time.perf_counter() > deadline
        if step == settings.steps or flat or late:
            break
        update = _step(equations, fixed.shape[-1], settings)
        field = update + read_at(field, grid + update)
        field = torch.lerp(field, smooth_rows(field, settings.elastic_sigma), settings.elastic_share)
    return Refined(best, costs[0], min(costs), len(costs) - 1)


def coarse_start(features: Tensor, weight: Tensor) -> Tensor:
    """A registration at half the features' resolution, the network's start: [B,3,d,h,w] in voxels of the features.

    Args:
        features: [2B,C,d,h,w], B moving ones and then B fixed ones.
        weight: [B,1,d,h,w], 0 where the images cannot be compared.
    """
    batch = len(weight)
    pooled, trusted = F.avg_pool3d(features, 2), eroded(-F.max_pool3d(-weight, 2))
    starts = []
    for row in range(batch):
        moving, fixed = to_rows(pooled[row : row + 1]), to_rows(pooled[batch + row : batch + row + 1])
        still = torch.zeros(*fixed.shape[:3], 3)
        starts.append(from_rows(refine(moving, fixed, to_rows(trusted[row : row + 1]), still, COARSE).field))
    return 2 * F.interpolate(torch.cat(starts), scale_factor=2, mode="trilinear", align_corners=False)


def eroded(weight: Tensor) -> Tensor:
    """The weight [B,1,D,H,W] eroded by a voxel: a patch that reaches into the hole or past the border does not vote."""
    return -F.max_pool3d(-weight, 3, stride=1, padding=1)


def _normal_equations(warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Six products of slopes and three with the residual, [9,D,H,W], and the summed cost; slab by slab."""
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


def _step(equations: Tensor, channels: int, settings: RefineSettings) -> Tensor:
    """The pooled normal equations' solution, bounded and smoothed: (D,H,W,3)."""
    pooled = smooth(equations, settings.pool_sigma).reshape(9, -1)
    damping = settings.damping * channels / 12
    update = pooled.new_empty(3, pooled.shape[1])
    for start in range(0, pooled.shape[1], SLAB_VOXELS):
        part = slice(start, start + SLAB_VOXELS)
        update[:, part] = _solved(pooled[:, part], damping, settings.max_step_voxels)
    smoothed = smooth(update.reshape(3, *equations.shape[1:]), settings.fluid_sigma)
    return smoothed.permute(1, 2, 3, 0).contiguous()


def _solved(equations: Tensor, damping: float, longest: float) -> Tensor:
    """The symmetric 3 x 3 systems (9,N) solved by their adjugate, no solution longer than `longest`: (3,N)."""
    a, b, c, d, e, f, x, y, z = equations
    a, b, c = a + damping, b + damping, c + damping
    ca, cd, ce = b * c - f * f, e * f - c * d, d * f - b * e
    cb, cf, cc = a * c - e * e, d * e - a * f, a * b - d * d
    determinant = (a * ca + d * cd + e * ce).clamp_min(1e-12)
    i, j, k = ca * x + cd * y + ce * z, cd * x + cb * y + cf * z, ce * x + cf * y + cc * z
    # written out: torch's norm over an axis of three takes as long as all the rest
    length = (i * i + j * j + k * k).sqrt_().div_(determinant)
    return torch.stack([i, j, k]).mul_(longest / (length.clamp_min_(longest) * determinant))
