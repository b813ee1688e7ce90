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
from torch import Tensor

from hepalign.inference.sampling import Places, index_rows, slopes, smooth_rows


@dataclass(frozen=True)
class RefineSettings:
    """How a level is refined; lengths in voxels of that level."""

    steps: int = 16
    pool_size: int = 7
    fluid_size: int = 3
    elastic_size: int = 3
    elastic_share: float = 0.6
    damping: float = 0.05
    max_step_voxels: float = 0.8
    plateau: float = 2e-3


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
    fixed_slopes = slopes(fixed)
    total = float(weight.sum()) * fixed.shape[-1] + 1e-6
    best, best_cost, first_cost, taken = field, float("inf"), float("nan"), 0
    history: list[float] = []
    for step in range(settings.steps + 1):
        warped = Places(grid + field, moving.shape).read(moving)
        residual = (fixed - warped) * weight
        cost = float((residual * (fixed - warped)).sum()) / total
        first_cost = cost if step == 0 else first_cost
        if cost < best_cost:
            best, best_cost, taken = field, cost, step
        history.append(cost)
        flat = len(history) > 4 and history[-5] - cost < settings.plateau * history[-5]
        late = deadline is not None and time.perf_counter() > deadline
        if step == settings.steps or flat or late:
            break
        update = _step(
            residual, weight, [(f + w).mul_(0.5) for f, w in zip(fixed_slopes, slopes(warped), strict=True)], settings
        )
        field = update + Places(grid + update, field.shape).read(field)
        smooth = smooth_rows(field, settings.elastic_size)
        field = torch.lerp(field, smooth, settings.elastic_share)
    return Refined(best, first_cost, best_cost, taken)


def _step(residual: Tensor, weight: Tensor, slope: list[Tensor], settings: RefineSettings) -> Tensor:
    """The pooled normal equations' solution, bounded and smoothed: (D,H,W,3)."""
    pull = [(s * residual).sum(-1) for s in slope]
    weighted = [s * weight for s in slope]
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    products = [(weighted[a] * slope[b]).sum(-1) for a, b in pairs]
    system = smooth_rows(torch.stack(products + pull, -1), settings.pool_size)
    a, b, c, d, e, f, x, y, z = system.unbind(-1)
    damping = settings.damping * residual.shape[-1] / 12
    a, b, c = a + damping, b + damping, c + damping
    # the symmetric 3 x 3 system by its adjugate
    ca, cd, ce = b * c - f * f, e * f - c * d, d * f - b * e
    cb, cf, cc = a * c - e * e, d * e - a * f, a * b - d * d
    determinant = (a * ca + d * cd + e * ce).clamp_min(1e-12)
    update = torch.stack([ca * x + cd * y + ce * z, cd * x + cb * y + cf * z, ce * x + cf * y + cc * z], -1)
    update = update / determinant[..., None]
    length = update.norm(dim=-1, keepdim=True)
    update = update * (settings.max_step_voxels / length.clamp_min(settings.max_step_voxels))
    return smooth_rows(update, settings.fluid_size)
