"""Voxels of one grid read at the places of another, and the interpolation kernel beneath it.

Inside and outside follow ITK: a point is inside while it lies in the box that the voxels fill, that is within half a
voxel of the outermost centres; between centre and face the border value holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

Mode = Literal["linear", "nearest"]
# Coordinates are made for this many voxels at a time, so that memory stays with the images.
CHUNK_VOXELS = 1 << 20


def resample(volume: Volume, geometry: Geometry, *, mode: Mode = "linear", fill: float | None = None) -> Volume:
    """Read a volume at the voxels of another grid, any two orientations, aligned in the world.

    Args:
        volume: what to read.
        geometry: where to read it.
        mode: `linear` gives float32; `nearest` keeps the dtype (labels, masks).
        fill: the value outside the volume; by default the volume's lowest (air in a CT, background in a mask).
    """
    if volume.geometry.same_grid(geometry):
        data = volume.as_float() if mode == "linear" else volume.data
        return Volume(data, geometry)
    source = Interpolator(volume, mode, fill)
    to_index = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    out = np.empty(geometry.shape, source.dtype)
    for slab, indices in affine_slabs(to_index, geometry.shape):
        out[slab] = source(indices)
    return Volume(out, geometry)


def affine_slabs(to_index: NDArray[np.float64], shape: tuple[int, int, int]) -> Iterator[tuple[slice, Tensor]]:
    """The images of a grid's voxels under an index-to-index map, slab by slab along the first axis.

    Args:
        to_index: 4 x 4, voxel index of `shape` to continuous index of another grid.
        shape: (D, H, W).

    Yields:
        the slab and its indices (d, H, W, 3): computed in float64, handed on in float32 (1e-5 voxels).
    """
    depth, height, width = shape
    matrix = torch.tensor(to_index[:3], dtype=torch.float64)
    i, j, k = (torch.arange(n, dtype=torch.float64)[:, None] for n in shape)
    plane = (j * matrix[:, 1])[:, None] + k * matrix[:, 2] + matrix[:, 3]
    rows = (i * matrix[:, 0])[:, None, None]
    step = max(1, CHUNK_VOXELS // (height * width))
    for start in range(0, depth, step):
        slab = slice(start, min(start + step, depth))
        yield slab, (rows[slab] + plane).to(torch.float32)


def sample_grid(image: Tensor, indices: Tensor, padding: Literal["border", "zeros"] = "border") -> Tensor:
    """Linear interpolation at continuous voxel indices; differentiable in both arguments.

    Args:
        image: float32 [B, C, D, H, W].
        indices: float32 [B, d, h, w, 3], continuous indices in array order.
        padding: `border` holds the border value outside, `zeros` fades to 0 over one voxel.

    Returns:
        float32 [B, C, d, h, w].
    """
    size = torch.tensor(image.shape[2:], dtype=indices.dtype, device=indices.device)
    # grid_sample wants (x, y, z) = (W, H, D) and [-1, 1] between the outer faces.
    grid = ((indices * 2 + 1) / size - 1).flip(-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def outside(indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether continuous indices (..., 3) lie outside the box that a grid's voxels fill; bool (...)."""
    size = torch.tensor(shape, dtype=indices.dtype, device=indices.device)
    return ((indices < -0.5) | (indices >= size - 0.5)).any(dim=-1)


def readable(data: NDArray[np.generic]) -> Tensor:
    """An array as a tensor that is only read, copied where torch would warn of a read-only one."""
    contiguous = np.ascontiguousarray(data)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


class Interpolator:
    """A volume made ready to be read at continuous indices, slab after slab.

    Args:
        volume: what to read.
        mode: `linear` reads float32; `nearest` keeps the dtype.
        fill: the value outside; the volume's lowest by default.
    """

    def __init__(self, volume: Volume, mode: Mode, fill: float | None) -> None:
        self.shape = volume.geometry.shape
        self.mode = mode
        self.dtype: np.dtype[np.generic] = np.dtype(np.float32) if mode == "linear" else volume.data.dtype
        self.data = volume.as_float() if mode == "linear" else np.ascontiguousarray(volume.data)
        self.fill = self.data.min() if fill is None else fill
        if mode == "linear":
            self._tensor = readable(self.data)[None, None]

    def __call__(self, indices: Tensor) -> NDArray[np.generic]:
        """Values at (d, h, w, 3) continuous indices, shape (d, h, w)."""
        if self.mode == "linear":
            values = sample_grid(self._tensor, indices[None])[0, 0].numpy()
        else:
            values = self._nearest(indices)
        values[outside(indices, self.shape).numpy()] = self.fill
        return values

    def _nearest(self, indices: Tensor) -> NDArray[np.generic]:
        # Halves round up, as ITK rounds them.
        voxels = (indices + 0.5).floor().to(torch.int64)
        i, j, k = (voxels[..., axis].clamp(0, n - 1) for axis, n in enumerate(self.shape))
        flat = (i * self.shape[1] + j) * self.shape[2] + k
        values: NDArray[np.generic] = self.data.reshape(-1)[flat.numpy()]
        return values
