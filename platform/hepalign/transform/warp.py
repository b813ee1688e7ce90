"""Warping, and the one convention everything relies on.

    warped(x) = moving(x + u(x)) ≈ fixed(x)

x is a world point of the fixed image (RAS mm), u the displacement there. In networks the same holds in voxels of one
grid: `warped[p] = moving[p + d[p]]`, d in array order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.resample import Mode, outside, read_together, sample_grid
from hepalign.image.trilinear import VoxelMap
from hepalign.image.volume import Volume
from hepalign.shapes import Image, VoxelField
from hepalign.transform.displacement import DisplacementField

Box = tuple[slice, slice, slice]


def warp(moving: Volume, field: DisplacementField, *, mode: Mode = "linear", fill: float | None = None) -> Volume:
    """`moving` resampled once onto the field's grid: `warped(x) = moving(x + u(x))`.

    Args:
        moving: any grid, any orientation.
        field: its grid is the result's; `resample_field` puts it on another first.
        mode: `linear` gives float32; `nearest` keeps the dtype (labels, masks).
        fill: the value where x + u(x) lies outside `moving`; by default the volume's lowest.
    """
    return warp_together([moving], field, mode=mode, fills=[fill])[0]


def warp_together(
    moving: Sequence[Volume],
    field: DisplacementField,
    *,
    mode: Mode = "linear",
    fills: Sequence[float | None] | None = None,
) -> list[Volume]:
    """`warp` of several volumes that share one grid: where each voxel is read is worked out once.

    Raises:
        ValueError: the volumes lie on different grids.
    """
    geometry = moving[0].geometry
    if not all(volume.geometry.same_grid(geometry) for volume in moving):
        raise ValueError("volumes that are warped together share one grid")
    places = VoxelMap.between(geometry, field.geometry, field.vectors)
    read = read_together(moving, places, mode, fills or [None] * len(moving))
    return [Volume(values, field.geometry) for values in read]


def warp_masks(
    masks: Sequence[NDArray[np.bool_]], geometry: Geometry, field: DisplacementField
) -> list[NDArray[np.bool_]]:
    """Masks on one grid warped linearly and cut at one half, as `warp(..., fill=0.0)` would; bool (D, H, W) each.

    What lies away from a mask's True voxels is not read: a tumour costs little.
    """
    return [_warped(mask, geometry, field) for mask in masks]


def _warped(mask: NDArray[np.bool_], geometry: Geometry, field: DisplacementField) -> NDArray[np.bool_]:
    """One mask, of which its box with a voxel of background around it is read, where the image has one."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros(field.geometry.shape, bool)
    i, j, k = (slice(max(side.start - 1, 0), min(side.stop + 1, n)) for side, n in zip(box, mask.shape, strict=True))
    return warp(Volume(mask, geometry).crop((i, j, k)), field, fill=0.0).as_mask()


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds every True voxel; None where there is none."""
    box = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if len(filled) == 0:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return box[0], box[1], box[2]


def outside_grid(moving_geometry: Geometry, field: DisplacementField) -> NDArray[np.bool_]:
    """Where x + u(x) leaves the moving grid, so that `warp` fills: bool (D, H, W) on the field's grid."""
    mask = np.empty(field.geometry.shape, bool)
    for slab, indices in VoxelMap.between(moving_geometry, field.geometry, field.vectors).slabs():
        mask[slab] = outside(indices, moving_geometry.shape).numpy()
    return mask


def warp_tensor(
    image: Image,
    voxel_displacement: VoxelField,
    mode: Mode = "linear",
    padding: Literal["border", "zeros"] = "border",
) -> Image:
    """The kernel that networks use: `warped[b, c, p] = image[b, c, p + d[b, :, p]]`; differentiable, float32.

    Args:
        image: [B, C, D, H, W].
        voxel_displacement: [B, 3, D, H, W], voxels, in the order of the array's axes.
        mode: `linear`, or `nearest` (no gradient to the displacement).
        padding: `border` holds the border's value outside the image; `zeros` fades to 0 within one voxel.

    Returns:
        float32 [B, C, D, H, W] on the displacement's grid, whatever autocast says.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, displacement = image.float(), voxel_displacement.float()
        axes = [torch.arange(n, dtype=torch.float32, device=image.device) for n in displacement.shape[2:]]
        indices = displacement.movedim(1, -1) + torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        if mode == "linear":
            return sample_grid(image, indices, padding)
        size = torch.tensor(image.shape[2:], dtype=torch.float32, device=image.device)
        grid = ((indices * 2 + 1) / size - 1).flip(-1)
        return F.grid_sample(image, grid, mode="nearest", padding_mode=padding, align_corners=False)
