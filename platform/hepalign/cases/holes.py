"""Random coarse probe masks: what an operator would draw over a probe and its streaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Hole:
    """A capsule or a beam of square section from `tip` to `entry`, voxel indices; `radius` is half its width."""

    tip: NDArray[np.float64]
    entry: NDArray[np.float64]
    radius: float
    square: bool

    def inside(self, indices: Tensor) -> Tensor:
        """Whether indices [..., 3] lie in the hole; bool [...]."""
        tip = torch.from_numpy(self.tip.astype(np.float32))
        axis = torch.from_numpy((self.entry - self.tip).astype(np.float32))
        length = axis.norm().clamp_min(1e-6)
        axis = axis / length
        offset = indices - tip
        along = offset @ axis
        if not self.square:
            nearest = along.clamp(torch.zeros(()), length)[..., None] * axis
            capsule: Tensor = (offset - nearest).square().sum(dim=-1) <= self.radius**2
            return capsule
        # the beam's side axes: any two unit vectors across it
        helper = torch.zeros(3)
        helper[int(axis.abs().argmin())] = 1.0
        side = torch.linalg.cross(axis, helper)
        side = side / side.norm()
        other = torch.linalg.cross(axis, side)
        across = torch.maximum((offset @ side).abs(), (offset @ other).abs())
        beam: Tensor = (across <= self.radius) & (along >= -self.radius) & (along <= length + self.radius)
        return beam


def random_hole(
    rng: np.random.Generator,
    tip: NDArray[np.float64],
    spacing_mm: float,
    radius_mm: tuple[float, float],
    length_mm: tuple[float, float],
) -> Hole:
    """A hole that ends at `tip` (voxel index), from a random side; probes run more across than along the body."""
    direction = rng.standard_normal(3) * (1.0, 1.0, 0.5)
    direction /= max(float(np.linalg.norm(direction)), 1e-6)
    entry = tip + direction * rng.uniform(*length_mm) / spacing_mm
    return Hole(tip, entry, float(rng.uniform(*radius_mm)) / spacing_mm, bool(rng.random() < 0.5))
