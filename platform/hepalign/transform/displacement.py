"""A dense displacement field and the linear map that continues it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """`warped(x) = moving(x + u(x))` for world points x (RAS mm) of the fixed image.

    Args:
        vectors: u in world millimetres (RAS) at the voxels of `geometry`, float32 (D, H, W, 3).
        geometry: the grid of the fixed image (or a coarser one that covers it).
        linear: 4 x 4 world-to-world map (fixed to moving) that the field follows far away: outside its grid the
            field is `linear(x) - x` plus the residual of the nearest border voxel. The identity by default.
    """

    vectors: NDArray[np.float32]
    geometry: Geometry
    linear: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        if self.vectors.shape != (*self.geometry.shape, 3):
            raise ValueError(f"vectors of shape {self.vectors.shape} on a grid of shape {self.geometry.shape}")
        if self.vectors.dtype != np.float32:
            raise ValueError(f"displacements are float32, got {self.vectors.dtype}")

    @classmethod
    def identity(cls, geometry: Geometry) -> DisplacementField:
        return cls(np.zeros((*geometry.shape, 3), np.float32), geometry)

    @classmethod
    def from_linear(cls, matrix: NDArray[np.float64], geometry: Geometry) -> DisplacementField:
        """The field of a 4 x 4 world-to-world map (fixed point to moving point)."""
        points = geometry.grid_mm()
        moved = points @ matrix[:3, :3].T + matrix[:3, 3]
        return cls((moved - points).astype(np.float32), geometry, np.asarray(matrix, dtype=np.float64))
