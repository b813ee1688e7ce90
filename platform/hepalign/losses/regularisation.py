"""What keeps a displacement smooth: diffusion and bending energy of a voxel field [B,3,D,H,W]."""

from __future__ import annotations

import torch
from torch import Tensor


def diffusion(field: Tensor) -> Tensor:
    """Mean squared forward difference, summed over the three axes: 1 for each unit of slope of a linear field."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).sum() * field.shape[1]


def bending_energy(field: Tensor) -> Tensor:
    """Mean of Σ_ij (∂²u/∂x_i∂x_j)² over interior voxels (Rueckert et al. 1999, doi 10.1109/42.796284).

    A linear field's energy is 0; u = (x², 0, 0)'s is 4.
    """
    total = field.new_zeros(())
    for i in (2, 3, 4):
        second = field.narrow(i, 2, field.shape[i] - 2) - 2 * field.narrow(i, 1, field.shape[i] - 2)
        second = second + field.narrow(i, 0, field.shape[i] - 2)
        others = [axis for axis in (2, 3, 4) if axis != i]
        for axis in others:
            second = second.narrow(axis, 1, second.shape[axis] - 2)
        total = total + second.square().sum(1).mean()
        for j in (axis for axis in others if axis > i):
            mixed = _central(_central(field, i), j)
            (rest,) = {2, 3, 4} - {i, j}
            mixed = mixed.narrow(rest, 1, mixed.shape[rest] - 2)
            total = total + 2 * mixed.square().sum(1).mean()
    return total


def _central(field: Tensor, axis: int) -> Tensor:
    length = field.shape[axis] - 2
    return (field.narrow(axis, 2, length) - field.narrow(axis, 0, length)) / 2
