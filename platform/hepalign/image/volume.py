"""Voxels on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image: `data[i, j, k]` stands at `geometry.index_to_world((i, j, k))`.

    Args:
        data: (D, H, W), any real dtype; CT in HU, MR in arbitrary units, masks as bool, labels as integers.
        geometry: the grid; its shape is the data's.

    Raises:
        ValueError: when data and grid have different shapes.
    """

    data: NDArray[np.generic]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.data.shape != self.geometry.shape:
            raise ValueError(f"data of shape {self.data.shape} on a grid of shape {self.geometry.shape}")

    def with_data(self, data: NDArray[np.generic]) -> Volume:
        """Other voxels on the same grid."""
        return Volume(data, self.geometry)

    def crop(self, box: tuple[slice, slice, slice]) -> Volume:
        """The voxels of a box of the grid (a view of them); its slices have a start and a stop within it."""
        data = self.data[box]
        start = (box[0].start, box[1].start, box[2].start)
        return Volume(data, self.geometry.crop(start, (data.shape[0], data.shape[1], data.shape[2])))

    def as_float(self) -> NDArray[np.float32]:
        """The voxels as contiguous float32 (a copy only where one is needed)."""
        return np.ascontiguousarray(self.data, dtype=np.float32)

    def as_mask(self) -> NDArray[np.bool_]:
        """The voxels that are above one half: bool masks and label maps alike."""
        return np.asarray(self.data) > 0.5
