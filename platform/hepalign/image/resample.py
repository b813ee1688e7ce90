"""Voxels of one grid read at the places of another, and the interpolation kernel beneath it.

Inside and outside follow ITK: a point is inside while it lies in the box that the voxels fill, that is within half a
voxel of the outermost centres; between centre and face the border value holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

Mode = Literal["linear", "nearest"]
# Coordinates are made for this many voxels at a time: they stay in the cache, and memory with the images.
CHUNK_VOXELS = 1 << 18
# Fewer are read sooner than threads are woken.
PARALLEL_VOXELS = 1 << 14


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
    source = Interpolator([volume], mode, [fill])
    to_index = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    out = np.empty(geometry.shape, source.dtypes[0])
    for slab, indices in affine_slabs(to_index, geometry.shape):
        (out[slab],) = source(indices)
    return Volume(out, geometry)


def affine_slabs(to_index: NDArray[np.float64], shape: tuple[int, int, int]) -> Iterator[tuple[slice, Tensor]]:
    """The images of a grid's voxels under an index-to-index map, slab by slab along the first axis.

    Args:
        to_index: 4 x 4, voxel index of `shape` to continuous index of another grid.
        shape: (D, H, W).

    Yields:
        the slab and its indices (d, H, W, 3), float32: within 1e-4 voxels of what float64 gives on 512 voxels.
    """
    depth, height, width = shape
    matrix = torch.tensor(to_index[:3], dtype=torch.float64)
    i, j, k = (torch.arange(n, dtype=torch.float64)[:, None] for n in shape)
    plane = ((j * matrix[:, 1])[:, None] + k * matrix[:, 2] + matrix[:, 3]).float()
    rows = (i * matrix[:, 0])[:, None, None].float()
    step = max(1, CHUNK_VOXELS // (height * width))
    for start in range(0, depth, step):
        slab = slice(start, min(start + step, depth))
        yield slab, rows[slab] + plane


def sample_grid(image: Tensor, indices: Tensor, padding: Literal["border", "zeros"] = "border") -> Tensor:
    """Linear interpolation at continuous voxel indices; differentiable in both arguments.

    Args:
        image: float32 [B, C, D, H, W].
        indices: float32 [B, d, h, w, 3], continuous indices in array order.
        padding: `border` holds the border value outside, `zeros` fades to 0 over one voxel.

    Returns:
        float32 [B, C, d, h, w].
    """
    # rows of whole lines: a divisor of three numbers would be read slowly
    size = torch.tensor(image.shape[2:], dtype=indices.dtype, device=indices.device).repeat(indices.shape[3])
    # [-1, 1] between the outer faces; a factor 2 / size would be rounded once more and miss voxel centres
    grid = torch.add(1, indices.flatten(3), alpha=2).div_(size).sub_(1).view(indices.shape)
    # grid_sample counts (x, y, z) from the last axis: an image seen with its axes reversed needs no reversed grid
    turned = image.permute(0, 1, 4, 3, 2)
    parts = _parts(image, indices)
    if parts == 1:
        return F.grid_sample(turned, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    values = F.grid_sample(
        turned.expand(parts, -1, -1, -1, -1), grid.view(parts, 1, 1, -1, 3), mode="bilinear", padding_mode=padding,
        align_corners=False,
    )  # fmt: skip
    return values.movedim(1, 0).reshape(1, image.shape[1], *indices.shape[1:4])


def _parts(image: Tensor, indices: Tensor) -> int:
    """On a CPU grid_sample spreads a batch over the threads and never a volume: how many parts to make of one."""
    threads = torch.get_num_threads()
    voxels = indices[..., 0].numel()
    differentiable = torch.is_grad_enabled() and (image.requires_grad or indices.requires_grad)
    alone = image.device.type == "cpu" and len(image) == 1 and not differentiable
    return threads if alone and voxels % threads == 0 and voxels >= PARALLEL_VOXELS else 1


def outside(indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether continuous indices (..., 3) lie outside the box that a grid's voxels fill; bool (...)."""
    i, j, k = ((axis < -0.5) | (axis >= size - 0.5) for axis, size in zip(indices.unbind(-1), shape, strict=True))
    return i | j | k


def readable(data: NDArray[np.generic]) -> Tensor:
    """An array as a tensor that is only read, copied where torch would warn of a read-only one."""
    contiguous = np.ascontiguousarray(data)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


class Interpolator:
    """Volumes of one grid made ready to be read at continuous indices, slab after slab.

    Args:
        volumes: what to read.
        mode: `linear` reads float32; `nearest` keeps the dtype.
        fills: the value outside, for each; the volume's lowest where it is None.
    """

    def __init__(self, volumes: Sequence[Volume], mode: Mode, fills: Sequence[float | None]) -> None:
        self.shape = volumes[0].geometry.shape
        self.mode = mode
        self._data = [v.as_float() if mode == "linear" else np.ascontiguousarray(v.data) for v in volumes]
        self.dtypes = [data.dtype for data in self._data]
        self.fills = [data.min() if fill is None else fill for data, fill in zip(self._data, fills, strict=True)]
        if mode == "linear":
            # side by side, so that a place's voxels of all volumes lie in the same line of the cache
            together = [readable(data) for data in self._data]
            self._image = (torch.stack(together, -1) if len(together) > 1 else together[0][..., None]).movedim(-1, 0)

    def __call__(self, indices: Tensor) -> list[NDArray[np.generic]]:
        """Values at (d, h, w, 3) continuous indices, (d, h, w) for each volume."""
        if self.mode == "linear":
            read = [values.numpy() for values in sample_grid(self._image[None], indices[None])[0]]
        else:
            flat = self._nearest(indices)
            read = [data.reshape(-1)[flat] for data in self._data]
        beyond = outside(indices, self.shape)
        if beyond.any():
            for values, fill in zip(read, self.fills, strict=True):
                values[beyond.numpy()] = fill
        return read

    def _nearest(self, indices: Tensor) -> NDArray[np.int64]:
        """Each place's nearest voxel in the flat array; halves round up, as ITK rounds them."""
        voxels = (indices + 0.5).floor().to(torch.int64)
        i, j, k = (voxels[..., axis].clamp(0, n - 1) for axis, n in enumerate(self.shape))
        flat: NDArray[np.int64] = ((i * self.shape[1] + j) * self.shape[2] + k).numpy()
        return flat
