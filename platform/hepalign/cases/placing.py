"""Where a network's or a cohort's grid lies: on the liver, or else on the body."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume


def covering_grid(geometry: Geometry, spacing_mm: float) -> Geometry:
    """The axis-aligned (RAS) isotropic grid that covers every voxel of another grid."""
    low, high = _box(geometry)
    shape = np.maximum(np.ceil((high - low) / spacing_mm - 1e-3), 1).astype(int)
    origin = (low + high) / 2 - (shape - 1) / 2 * spacing_mm
    return Geometry.from_spacing((int(shape[0]), int(shape[1]), int(shape[2])), spacing_mm, origin_mm=origin)


def placed_grid(
    geometry: Geometry,
    shape: tuple[int, int, int],
    spacing_mm: float,
    *,
    body: Volume | None = None,
    liver: Volume | None = None,
) -> Geometry:
    """An axis-aligned (RAS) isotropic grid of `shape`, placed where the anatomy is.

    It is centred on the body in x and y and on the liver in z; where there is no liver on the body, where there is
    no body on the image. Along an axis where the image is longer than the grid the grid stays inside the image, and
    where the liver fits into the grid it lies in it whole.

    Args:
        geometry: the image's grid.
        shape: voxels of the grid.
        spacing_mm: its spacing.
        body: mask of the body.
        liver: mask of the liver.
    """
    low, high = _box(geometry)
    centre = (low + high) / 2
    for mask, axes in ((body, (0, 1, 2)), (liver, (2,))):
        middle = mask_centre_mm(mask) if mask is not None else None
        if middle is not None:
            centre[list(axes)] = middle[list(axes)]
    half = np.asarray(shape) * spacing_mm / 2
    slack = np.maximum((high - low) / 2 - half, 0)
    centre = np.clip(centre, (low + high) / 2 - slack, (low + high) / 2 + slack)
    ends = mask_box_mm(liver) if liver is not None else None
    if ends is not None:
        first, last = ends[1] - half + spacing_mm, ends[0] + half - spacing_mm
        centre = np.where(first <= last, np.clip(centre, first, np.maximum(first, last)), centre)
    origin = centre - (np.asarray(shape) - 1) / 2 * spacing_mm
    return Geometry.from_spacing(shape, spacing_mm, origin_mm=origin)


def mask_centre_mm(mask: Volume) -> NDArray[np.float64] | None:
    """World position of the middle of a mask's box, or None where the mask is empty."""
    ends = _mask_ends(mask)
    return None if ends is None else mask.geometry.index_to_world(ends.mean(axis=0))


def mask_box_mm(mask: Volume) -> NDArray[np.float64] | None:
    """Lowest and highest world positions (2, 3) of the box of a mask's voxel centres, or None where it is empty."""
    ends = _mask_ends(mask)
    if ends is None:
        return None
    world = mask.geometry.index_to_world(np.array(np.meshgrid(*ends.T, indexing="ij")).reshape(3, -1).T)
    return np.array([world.min(axis=0), world.max(axis=0)])


def _mask_ends(mask: Volume) -> NDArray[np.float64] | None:
    """First and last index (2, 3) of a mask along the array's axes."""
    inside = mask.as_mask()
    ends = []
    for axis in range(3):
        filled = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(filled):
            return None
        ends.append((filled[0], filled[-1]))
    return np.array(ends, dtype=np.float64).T


def _box(geometry: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World limits of the box that the voxels (not only their centres) fill."""
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in geometry.shape], indexing="ij")).reshape(3, -1).T
    world = geometry.index_to_world(faces)
    return world.min(axis=0), world.max(axis=0)
