"""Voxels of one grid read at the places of another, and the interpolation that gradients go through.

Inside and outside follow ITK: a point is inside while it lies in the box that the voxels fill, that is within half a
voxel of the outermost centres; between centre and face the border value holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.trilinear import VoxelMap, read_linear
from hepalign.image.volume import Volume

Mode = Literal["linear", "nearest"]


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
    places = VoxelMap.between(volume.geometry, geometry)
    return Volume(read_together([volume], places, mode, [fill])[0], geometry)


def read_together(
    volumes: Sequence[Volume], places: VoxelMap, mode: Mode, fills: Sequence[float | None]
) -> list[NDArray[np.generic]]:
    """Volumes of one grid at the places of another grid's voxels, (d, h, w) each.

    Args:
        volumes: what to read.
        places: of a grid (d, h, w) in that of the volumes.
        mode: `linear` reads float32; `nearest` keeps the dtype.
        fills: the value outside, for each; the volume's lowest where it is None.
    """
    data = [v.as_float() if mode == "linear" else np.ascontiguousarray(v.data) for v in volumes]
    outer = [image.min() if fill is None else fill for image, fill in zip(data, fills, strict=True)]
    if mode == "nearest":
        return _read_nearest(data, places, outer)
    # side by side, so that a place's voxels of all volumes lie in the same line of the cache
    image = np.stack(data, axis=-1) if len(data) > 1 else data[0][..., None]
    out = np.empty((len(data), *places.shape), np.float32)
    read_linear(image, places, np.moveaxis(out, 0, -1), fills=np.array(outer, np.float32))
    return list(out)


def _read_nearest(
    data: Sequence[NDArray[np.generic]], places: VoxelMap, fills: Sequence[float]
) -> list[NDArray[np.generic]]:
    """Each place's nearest voxel; halves round up, as ITK rounds them."""
    out = [np.empty(places.shape, image.dtype) for image in data]
    shape = (data[0].shape[0], data[0].shape[1], data[0].shape[2])
    for slab, indices in places.slabs():
        voxels = (indices + 0.5).floor().to(torch.int64)
        i, j, k = (voxels[..., axis].clamp(0, n - 1) for axis, n in enumerate(shape))
        flat = ((i * shape[1] + j) * shape[2] + k).numpy()
        beyond = outside(indices, shape).numpy()
        for whole, image, fill in zip(out, data, fills, strict=True):
            values = image.reshape(-1)[flat]
            values[beyond] = fill
            whole[slab] = values
    return out


def sample_grid(image: Tensor, indices: Tensor, padding: Literal["border", "zeros"] = "border") -> Tensor:
    """Linear interpolation at continuous voxel indices; differentiable in both arguments.

    Args:
        image: float32 [B, C, D, H, W].
        indices: float32 [B, d, h, w, 3], continuous indices in array order.
        padding: `border` holds the border value outside, `zeros` fades to 0 over one voxel.

    Returns:
        float32 [B, C, d, h, w].
    """
    differentiable = torch.is_grad_enabled() and (image.requires_grad or indices.requires_grad)
    if image.device.type == "cpu" and padding == "border" and not differentiable:
        return _read_each(image, indices)
    # rows of whole lines: a divisor of three numbers would be read slowly
    size = torch.tensor(image.shape[2:], dtype=indices.dtype, device=indices.device).repeat(indices.shape[3])
    # [-1, 1] between the outer faces; a factor 2 / size would be rounded once more and miss voxel centres
    grid = torch.add(1, indices.flatten(3), alpha=2).div_(size).sub_(1).view(indices.shape)
    # grid_sample counts (x, y, z) from the last axis: an image seen with its axes reversed needs no reversed grid
    turned = image.permute(0, 1, 4, 3, 2)
    return F.grid_sample(turned, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _read_each(image: Tensor, indices: Tensor) -> Tensor:
    """The same without gradients, on a CPU: `read_linear` of each in the batch."""
    out = torch.empty((image.shape[0], *indices.shape[1:4], image.shape[1]))
    for channels, places, values in zip(image.detach().movedim(1, -1), indices.detach(), out, strict=True):
        read_linear(channels.numpy(), VoxelMap.of_indices(places.numpy()), values.numpy())
    return out.movedim(-1, 1)


def outside(indices: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether continuous indices (..., 3) lie outside the box that a grid's voxels fill; bool (...)."""
    i, j, k = ((axis < -0.5) | (axis >= size - 0.5) for axis, size in zip(indices.unbind(-1), shape, strict=True))
    return i | j | k
