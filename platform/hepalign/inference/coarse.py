"""The coarse fit that everything finer starts from: Gauss-Newton on MIND-SSC, every voxel's step its own.

Each step solves every voxel's normal equations pooled over its neighbourhood (Lucas & Kanade 1981) with symmetric
forces (the mean of both images' slopes, Vercauteren et al. 2009, doi 10.1016/j.neuroimage.2008.10.040), smooths the
step (fluid), composes it onto the field, and smooths the field a little (diffusion). Voxels of the probe and its
artefact have weight 0, so the field runs through the hole on regularity alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hepalign.inference.normal_equations import adjugate, normal_equations
from hepalign.inference.sampling import SLAB_VOXELS, from_rows, index_rows, read_at, smooth, smooth_rows, to_rows


@dataclass(frozen=True)
class CoarseSettings:
    """How a level is fitted; lengths in voxels of that level.

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
COARSE = CoarseSettings(steps=8)


@dataclass(frozen=True)
class Fitted:
    """The field (D,H,W,3) in voxels, the mean cost before and after, and the steps taken."""

    field: Tensor
    cost_before: float
    cost_after: float
    steps: int


@torch.inference_mode()
def coarse_fit(
    moving: Tensor,
    fixed: Tensor,
    weight: Tensor,
    field: Tensor,
    settings: CoarseSettings,
) -> Fitted:
    """Improve `field` so that moving(x + field(x)) ≈ fixed(x).

    Args:
        moving: feature table (D,H,W,C).
        fixed: the same shape.
        weight: (D,H,W,1), 0 where the images cannot be compared.
        field: start, (D,H,W,3) in voxels.
        settings: steps, smoothing, damping.
    """
    grid = index_rows(fixed.shape)
    total = float(weight.sum()) * fixed.shape[-1] + 1e-6
    best, costs = field, list[float]()
    for step in range(settings.steps + 1):
        equations, cost = normal_equations(read_at(moving, grid + field), fixed, weight)
        cost /= total
        if not costs or cost < min(costs):
            best = field
        costs.append(cost)
        flat = len(costs) > 4 and costs[-5] - cost <= settings.plateau * costs[-5]
        if step == settings.steps or flat:
            break
        update = _step(equations, fixed.shape[-1], settings)
        field = update + read_at(field, grid + update)
        field = torch.lerp(field, smooth_rows(field, settings.elastic_sigma), settings.elastic_share)
    return Fitted(best, costs[0], min(costs), len(costs) - 1)


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
        starts.append(from_rows(coarse_fit(moving, fixed, to_rows(trusted[row : row + 1]), still, COARSE).field))
    return 2 * F.interpolate(torch.cat(starts), scale_factor=2, mode="trilinear", align_corners=False)


def eroded(weight: Tensor) -> Tensor:
    """The weight [B,1,D,H,W] eroded by a voxel: a patch that reaches into the hole or past the border does not vote."""
    return -F.max_pool3d(-weight, 3, stride=1, padding=1)


def _step(equations: Tensor, channels: int, settings: CoarseSettings) -> Tensor:
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
    matrix, (x, y, z) = equations[:6].clone(), equations[6:]
    matrix[:3] += damping
    a, b, c, d, e, f, determinant = adjugate(matrix)
    determinant = determinant.clamp_min(1e-12)
    i, j, k = a * x + d * y + e * z, d * x + b * y + f * z, e * x + f * y + c * z
    # written out: torch's norm over an axis of three takes as long as all the rest
    length = (i * i + j * j + k * k).sqrt_().div_(determinant)
    return torch.stack([i, j, k]).mul_(longest / (length.clamp_min_(longest) * determinant))
