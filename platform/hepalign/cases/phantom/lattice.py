"""Smooth functions of space held on a coarse lattice and read trilinearly anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Lattice:
    """`values` (C, d, h, w) at `origin_mm + step_mm * index`; constant beyond the border.

    It is the definition of the function, not an approximation of one: whoever reads it anywhere reads the same.
    """

    values: Array
    origin_mm: NDArray[np.float64]
    step_mm: float

    @classmethod
    def nodes(cls, low_mm: NDArray[np.float64], high_mm: NDArray[np.float64], step_mm: float) -> Array:
        """World positions (3, d, h, w) of the nodes that cover a box from its low corner on."""
        axes = [np.arange(low, high + step_mm, step_mm) for low, high in zip(low_mm, high_mm, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def read(self, points: Array) -> Array:
        """Values (C, ...) at points (3, ...) in millimetres."""
        shape = points.shape[1:]
        scale = 2.0 / (self.step_mm * (np.array(self.values.shape[1:]) - 1))
        grid = np.empty((points[0].size, 3), np.float32)
        for axis in range(3):
            # grid_sample counts axes from the last one.
            np.subtract(points[axis].reshape(-1), np.float32(self.origin_mm[axis]), out=grid[:, 2 - axis])
            grid[:, 2 - axis] *= np.float32(scale[axis])
        grid -= 1
        sampled = torch.nn.functional.grid_sample(
            torch.from_numpy(np.ascontiguousarray(self.values))[None],
            torch.from_numpy(grid)[None, None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        values: Array = sampled.numpy().reshape(self.values.shape[0], *shape)
        return values


def flow(velocity: Lattice, squarings: int = 6) -> Lattice:
    """Displacement of the unit-time flow of a stationary velocity (Arsigny et al. 2006, scaling and squaring)."""
    nodes = _nodes_of(velocity)
    displacement = velocity.values / np.float32(2**squarings)
    for _ in range(squarings):
        step = Lattice(displacement, velocity.origin_mm, velocity.step_mm)
        displacement = displacement + step.read(nodes + displacement)
    return Lattice(displacement, velocity.origin_mm, velocity.step_mm)


def _nodes_of(lattice: Lattice) -> Array:
    indices = np.indices(lattice.values.shape[1:], dtype=np.float32)
    return indices * np.float32(lattice.step_mm) + lattice.origin_mm.astype(np.float32)[:, None, None, None]


def inverse(displacement: Lattice) -> Lattice:
    """The displacement that undoes another, exact at the nodes (fixed-point iteration, Chen et al. 2008)."""
    nodes = _nodes_of(displacement)
    back = -displacement.values
    for _ in range(12):
        back = -displacement.read(nodes + back)
    return Lattice(back, displacement.origin_mm, displacement.step_mm)


def solve_shift(displacement: Lattice, targets: Array, guess: Lattice, iterations: int) -> Array:
    """Points p with `p + displacement(p) = targets`, by fixed-point iteration from `targets + guess(targets)`."""
    points = targets + guess.read(targets)
    for _ in range(iterations):
        points = targets - displacement.read(points)
    return points


def smooth_noise(rng: np.random.Generator, channels: int, shape: tuple[int, ...], sigma_nodes: float) -> Array:
    """Gaussian noise of unit standard deviation, correlated over `sigma_nodes`, (channels, *shape)."""
    noise = rng.standard_normal((channels, *shape)).astype(np.float32)
    smoothed = gaussian_filter(noise, (0, sigma_nodes, sigma_nodes, sigma_nodes), mode="reflect", truncate=3.0)
    deviation = smoothed.std(axis=(1, 2, 3), keepdims=True)
    scaled: Array = smoothed / deviation
    return scaled
