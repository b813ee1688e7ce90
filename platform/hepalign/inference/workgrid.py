"""The grid that registration works on, and the way back to the fixed image's own.

Whatever the images' resolution, matching happens on a canonical (RAS-ordered) grid of about 2.8 mm over the fixed
image's box (up to 3.3 mm between coarser CTs, ADR 0017; finer between an MR and a CT that show a small part of the
body, ADR 0016), in soft-tissue unit intensities; only the finished field is brought to full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.intensity import SOFT_TISSUE_WINDOW_HU, ct_to_unit
from hepalign.image.trilinear import VoxelMap
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField

WORK_SPACING_MM = 2.8
# A field of view below this (the cube root of its volume) is looked at more finely, in proportion, down to these
# shares of what suits a trunk: of the affine start's voxels, and of the work grid's (ADR 0016).
WHOLE_MM = 220.0
LEAST_START_SCALE, LEAST_WORK_SCALE = 0.4, 0.7
# A CT that is coarser than 3.2 mm along every axis is matched on voxels of this share of its own, up to the coarsest
# (ADR 0017): measured on development phantoms of 3.8 mm, a third less time for 0.04 mm (`refine`) and 0.2 mm (`fast`).
COARSE_SHARE, COARSEST_MM = 0.87, 3.3
# The network halves its input four times.
SHAPE_MULTIPLE = 16
MAX_WORK_VOXELS = 3_000_000


@dataclass(frozen=True)
class Axes:
    """Array axes in RAS order: canonical array = flip(transpose(array, order), flipped)."""

    order: tuple[int, int, int]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, geometry: Geometry) -> Axes:
        """The reordering that brings a grid's axes nearest to right, anterior, superior."""
        direction = np.abs(geometry.direction)
        order: list[int] = []
        for world in range(3):
            left = [axis for axis in range(3) if axis not in order]
            order.append(max(left, key=lambda axis: direction[world, axis]))
        signs = [geometry.direction[world, order[world]] for world in range(3)]
        return cls((order[0], order[1], order[2]), tuple(i for i, sign in enumerate(signs) if sign < 0))

    def apply(self, data: NDArray[np.generic]) -> NDArray[np.generic]:
        """The array (D, H, W[, C]) in RAS order, a view."""
        rest = range(3, data.ndim)
        return np.flip(np.transpose(data, (*self.order, *rest)), self.flipped)

    def undo(self, tensor: Tensor) -> Tensor:
        """A tensor [..., D, H, W] in RAS order back in the array's own order."""
        first = tensor.ndim - 3
        turned = tensor.flip([first + axis for axis in self.flipped])
        back = [self.order.index(axis) for axis in range(3)]
        return turned.permute(*range(first), *(first + axis for axis in back))

    def geometry(self, geometry: Geometry) -> Geometry:
        """The same voxels' grid in RAS order."""
        shape = tuple(geometry.shape[axis] for axis in self.order)
        affine = geometry.affine.copy()
        affine[:3, :3] = geometry.affine[:3, list(self.order)]
        for axis in self.flipped:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
        return Geometry((shape[0], shape[1], shape[2]), affine)


def canonical(volume: Volume) -> Volume:
    """The volume with its axes in RAS order (a view of its voxels)."""
    axes = Axes.of(volume.geometry)
    return Volume(axes.apply(np.asarray(volume.data)), axes.geometry(volume.geometry))


def view_scale(moving: Geometry, fixed: Geometry, least: float) -> float:
    """How much finer than a trunk's the smaller of two fields of view is to be looked at: `least` … 1."""
    width_mm = min(float(np.cbrt(np.prod(grid.extent_mm))) for grid in (moving, fixed))
    return min(max(width_mm / WHOLE_MM, least), 1.0)


def ct_work_spacing_mm(fixed: Geometry) -> float:
    """What two CTs are matched at: not much finer than the fixed one is."""
    return min(max(WORK_SPACING_MM, COARSE_SHARE * min(fixed.spacing_mm)), COARSEST_MM)


def mr_work_spacing_mm(moving: Geometry, fixed: Geometry) -> float:
    """What an MR is matched to a CT at: finer for small fields of view, but not finer than the CT's own voxels."""
    finer = view_scale(moving, fixed, LEAST_WORK_SCALE) * WORK_SPACING_MM
    return min(WORK_SPACING_MM, max(finer, float(np.cbrt(fixed.voxel_volume_mm3))))


def work_geometry(fixed: Geometry, spacing_mm: float = WORK_SPACING_MM) -> Geometry:
    """The canonical grid over the fixed image's box with about this spacing, in multiples of 16 voxels."""
    box = Axes.of(fixed).geometry(fixed)
    wanted = np.asarray(box.extent_mm) / spacing_mm
    wanted *= min(1.0, (MAX_WORK_VOXELS / wanted.prod()) ** (1 / 3))
    i, j, k = (SHAPE_MULTIPLE * max(1, round(float(n) / SHAPE_MULTIPLE)) for n in wanted)
    return box.with_shape((i, j, k))


def coarsened(volume: Volume, spacing_mm: float) -> Volume:
    """The canonical volume averaged down to voxels of about `spacing_mm` (never up), float32."""
    ordered = canonical(volume)
    factor = np.maximum(1.0, spacing_mm / np.asarray(ordered.geometry.spacing_mm))
    i, j, k = (max(1, round(n / f)) for n, f in zip(ordered.geometry.shape, factor, strict=True))
    shape = (i, j, k)
    data = ordered.as_float()
    if shape == ordered.geometry.shape:
        return Volume(data, ordered.geometry)
    averaged = F.adaptive_avg_pool3d(torch.from_numpy(data)[None, None], shape)
    return Volume(averaged[0, 0].numpy(), ordered.geometry.with_shape(shape))


def resized(data: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[B,C,…] on another number of voxels of the same box: averaged where coarser, linear where finer."""
    i, j, k = (min(n, m) for n, m in zip(data.shape[2:], shape, strict=True))
    middle = (i, j, k)
    if middle != tuple(data.shape[2:]):
        data = F.adaptive_avg_pool3d(data, middle)
    if middle == shape:
        return data
    return F.interpolate(data, size=shape, mode="trilinear", align_corners=False)


def soft_tissue(hu: Tensor) -> Tensor:
    """HU to [-1, 1] over the soft-tissue window."""
    unit: Tensor = ct_to_unit(hu, SOFT_TISSUE_WINDOW_HU)
    return unit


def on_work_grid(fixed: Volume, work: Geometry) -> Tensor:
    """The fixed image's values on its work grid, float32 [1,1,D,H,W]."""
    ordered = np.ascontiguousarray(canonical(fixed).data, dtype=np.float32)
    return resized(torch.from_numpy(ordered)[None, None], work.shape)


def full_field(residual: Tensor, linear: NDArray[np.float64], work: Geometry, fixed: Geometry) -> DisplacementField:
    """The whole map x ↦ A(x + r(x)) as displacements on the fixed image's own grid.

    Args:
        residual: [1,3,D,H,W], voxels of the work grid or of a coarser grid over the same box (rescaled here).
        linear: A, 4 x 4, fixed world to moving world.
        work: the grid whose voxels `residual` counts.
        fixed: the grid that the result lives on.
    """
    axes = Axes.of(fixed)
    box = axes.geometry(fixed)
    upsampled = resized(residual, box.shape)
    turn = torch.from_numpy((linear[:3, :3] @ work.affine[:3, :3]).astype(np.float32))
    own = axes.undo(upsampled)[0].movedim(0, -1)
    vectors = np.empty((*fixed.shape, 3), np.float32)
    for slab, moved in VoxelMap(fixed.shape, (linear - np.eye(4)) @ fixed.affine).slabs():
        vectors[slab] = moved.view(-1, 3).addmm_(own[slab].reshape(-1, 3), turn.T).view(moved.shape).numpy()
    return DisplacementField(vectors, fixed, np.asarray(linear, dtype=np.float64))
