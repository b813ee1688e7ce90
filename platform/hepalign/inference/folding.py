"""A field without folds: det(I + ∂u/∂x) > 0 for all eight combinations of one-sided differences, at every voxel."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from hepalign.inference.sampling import smooth_rows

MAX_ROUNDS = 60


def corner_determinants(field: Tensor) -> Tensor:
    """The least of the eight corner determinants of a voxel field (D,H,W,3): (D,H,W)."""
    edges = []
    for axis in range(3):
        step = field.diff(dim=axis)
        step[..., axis] += 1
        first, last = step.narrow(axis, 0, 1), step.narrow(axis, step.shape[axis] - 1, 1)
        edges.append((torch.cat([step, last], axis), torch.cat([first, step], axis)))
    least: Tensor | None = None
    for a, b in product(*edges[:2]):
        normal = torch.linalg.cross(a, b)
        for c in edges[2]:
            determinant = (normal * c).sum(-1)
            least = determinant if least is None else torch.minimum(least, determinant)
    assert least is not None
    return least


def unfold(field: Tensor, safe: float = 0.05) -> Tensor:
    """The field (D,H,W,3, voxels) with each fold smoothed away, and only there.

    Args:
        field: voxels.
        safe: what every corner determinant must reach at least.

    Where local smoothing does not end the fold within `MAX_ROUNDS`, the field shrinks towards 0 there.
    """
    for round_number in range(MAX_ROUNDS):
        folded = corner_determinants(field) < safe
        if not folded.any():
            return field
        # each round reaches a little further around what still folds
        mask = folded.float()[..., None]
        for _ in range(2 + round_number // 4):
            mask = torch.nn.functional.max_pool3d(mask[..., 0][None, None], 3, 1, 1)[0, 0][..., None]
        mask = smooth_rows(mask, 1.0)
        target = smooth_rows(field, 1.2) if round_number < MAX_ROUNDS // 2 else field * 0.8
        field = torch.lerp(field, target, mask)
    while (corner_determinants(field) < safe).any():
        field = field * 0.8
    return field
