"""How far the field at a structure wanders when the registration is started elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from hepalign.inference.coarse import CoarseSettings, coarse_fit
from hepalign.inference.sampling import smooth_rows, to_rows
from hepalign.inference.workgrid import resized

STARTS = 3
START_SPREAD_VOXELS = 0.6
SETTINGS = CoarseSettings(steps=6)


def start_spread(tables: tuple[Tensor, Tensor, Tensor], residual: Tensor, seed: int = 0) -> Tensor:
    """Standard deviation, in voxels, of the fields reached from perturbed starts: (d,h,w,3).

    Args:
        tables: moving and fixed features (d,h,w,C) and weight (d,h,w,1) at one level.
        residual: the field there, (d,h,w,3) in voxels.
        seed: of the smooth random perturbations, whose standard deviation is `START_SPREAD_VOXELS`.
    """
    moving, fixed, weight = tables
    generator = torch.Generator().manual_seed(seed)
    reached = []
    for _ in range(STARTS):
        noise = torch.randn(1, 3, *(max(2, n // 4) for n in residual.shape[:3]), generator=generator)
        bump = to_rows(resized(noise, (residual.shape[0], residual.shape[1], residual.shape[2])))
        bump = smooth_rows(bump, 1.2)
        start = residual + bump * (START_SPREAD_VOXELS / bump.std())
        reached.append(coarse_fit(moving, fixed, weight, start, SETTINGS).field)
    return torch.stack([*reached, residual]).std(0)
