"""A voxel grid's place in the world, apart from any pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Two grids are one when no corner differs by more than this share of a voxel: float32 headers round at about 1e-5.
SAME_GRID_TOLERANCE_VOXELS = 1e-2


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular grid: `world = affine @ (i, j, k, 1)`, world in RAS millimetres.

    Args:
        shape: number of voxels along the array's axes (D, H, W).
        affine: 4 x 4, voxel index to world, float64; rotation, spacing and origin, no shear. It is copied and
            made read-only.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, got shape {self.shape}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine is a finite 4 x 4 matrix, got {affine.shape}: {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: tuple[int, int, int],
        spacing_mm: ArrayLike,
        *,
        origin_mm: ArrayLike = (0.0, 0.0, 0.0),
        direction: ArrayLike | None = None,
    ) -> Geometry:
        """A grid from ITK's three words (in RAS): `spacing_mm` (scalar or 3), `origin_mm`, `direction` (3 x 3)."""
        affine = np.eye(4)
        directions = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64)
        affine[:3, :3] = directions * np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
        affine[:3, 3] = origin_mm
        return cls(shape, affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the array's axes."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def direction(self) -> NDArray[np.float64]:
        """3 x 3, unit column vectors of the array's axes in the world."""
        directions: NDArray[np.float64] = self.affine[:3, :3] / np.asarray(self.spacing_mm)
        return directions

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """World position of voxel (0, 0, 0)'s centre."""
        x, y, z = self.affine[:3, 3].tolist()
        return x, y, z

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """World position of the grid's middle."""
        return self.index_to_world((np.asarray(self.shape, dtype=np.float64) - 1) / 2)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the box that the voxels fill."""
        i, j, k = (np.asarray(self.shape) * np.asarray(self.spacing_mm)).tolist()
        return i, j, k

    def index_to_world(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) to world millimetres (..., 3)."""
        points = np.asarray(indices, dtype=np.float64)
        world: NDArray[np.float64] = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def world_to_index(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """World millimetres (..., 3) to continuous voxel indices (..., 3)."""
        points = np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]
        indices: NDArray[np.float64] = points @ np.linalg.inv(self.affine[:3, :3]).T
        return indices

    def contains(self, points_mm: ArrayLike) -> NDArray[np.bool_]:
        """Whether each world point (..., 3) lies between the first and last voxel centres of every axis."""
        indices = self.world_to_index(points_mm)
        last = np.asarray(self.shape) - 1
        return np.asarray(((indices >= -1e-6) & (indices <= last + 1e-6)).all(axis=-1))

    def corners_mm(self) -> NDArray[np.float64]:
        """The eight outermost voxel centres, (8, 3), world."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return self.index_to_world(corners)

    def grid_mm(self, box: tuple[slice, slice, slice] | None = None) -> NDArray[np.float64]:
        """World position of every voxel centre, (D, H, W, 3), or of those in a box of the array."""
        axes = [np.arange(n)[part] for n, part in zip(self.shape, box or (slice(None),) * 3, strict=True)]
        return self.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))

    def index_box(self, low_mm: ArrayLike, high_mm: ArrayLike) -> tuple[slice, slice, slice]:
        """The box of the array that holds every voxel centre from one corner to another of a box in the world."""
        # held to the grid first: a corner may lie so far off that its index is no finite number
        corners = self.corners_mm()
        low = np.clip(low_mm, corners.min(axis=0) - 1, corners.max(axis=0) + 1)
        high = np.clip(high_mm, corners.min(axis=0) - 1, corners.max(axis=0) + 1)
        ends = self.world_to_index(np.array(np.meshgrid(*np.stack([low, high], axis=1))).reshape(3, -1).T)
        starts = np.clip(np.floor(ends.min(axis=0)), 0, self.shape).astype(int).tolist()
        stops = np.clip(np.ceil(ends.max(axis=0)) + 1, 0, self.shape).astype(int).tolist()
        i, j, k = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
        return i, j, k

    def same_grid(self, other: Geometry, tolerance_voxels: float = SAME_GRID_TOLERANCE_VOXELS) -> bool:
        """Whether both grids have the same voxels at the same places."""
        if self.shape != other.shape:
            return False
        gap_mm = np.abs(self.corners_mm() - other.corners_mm()).max()
        return bool(gap_mm <= tolerance_voxels * min(self.spacing_mm))

    def with_shape(self, shape: tuple[int, int, int]) -> Geometry:
        """The same box (outer voxel faces kept) divided into another number of voxels."""
        scale = np.asarray(self.shape, dtype=np.float64) / np.asarray(shape, dtype=np.float64)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * scale
        affine[:3, 3] = self.index_to_world((scale - 1) / 2)
        return Geometry(shape, affine)

    def crop(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Geometry:
        """The sub-grid (or, with negative starts, the padded grid) that begins at voxel `start`."""
        affine = self.affine.copy()
        affine[:3, 3] = self.index_to_world(start)
        return Geometry(shape, affine)
