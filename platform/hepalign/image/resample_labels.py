"""Labels read on another grid by their shape, so that thick slices leave no steps.

Shape-based interpolation (Raya and Udupa 1990, IEEE TMI 9(1)): the signed distance to a label's border is interpolated
linearly and cut at zero. Of an ellipsoid drawn at 1.25 x 1.25 x 7.7 mm and read at 1.5 mm it keeps a Dice of 0.987;
nearest neighbour keeps 0.969, a linear mask cut at one half 0.974.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

# Where a voxel's centre lies exactly on a border it is in on one side and out on the other, as in rounding: without
# that, halving or shifting by half a voxel would shrink every label.
_TIE_VOXELS = 1e-3


def resample_labels(labels: Volume, geometry: Geometry) -> Volume:
    """A mask or label map at the voxels of another grid, each label by its own shape; 0 outside.

    Where several labels claim a voxel the one deepest inside wins. A label too small to reach the centre of any voxel
    takes those that it lies in.

    Args:
        labels: bool, or whole numbers from 0; any grid.
        geometry: where to read them.

    Returns:
        the same dtype on `geometry`.
    """
    if labels.geometry.same_grid(geometry):
        return Volume(labels.data, geometry)
    whole = np.asarray(labels.data).astype(np.int32)
    out = np.zeros(geometry.shape, labels.data.dtype)
    depth = np.zeros(geometry.shape, np.float32)
    for value, box in enumerate(scipy.ndimage.find_objects(whole), start=1):
        if box is None:
            continue
        start = [part.start - 1 for part in box]
        # the box's own rim of background: every label has an outside
        mask = np.pad(whole[box] == value, 1)
        place = _nudged(labels.geometry.crop((start[0], start[1], start[2]), mask.shape))
        window, there = _window(place, geometry)
        if not there:
            continue
        part = geometry.crop((window[0].start, window[1].start, window[2].start), out[window].shape)
        distance = resample(Volume(_signed_distance(mask, place), place), part, fill=np.inf).as_float()
        if not (distance < 0).any():
            distance = np.where(_fallen_in(mask, place, part), -np.float32(_TIE_VOXELS), np.float32(np.inf))
        deeper = distance < depth[window]
        out[window][deeper] = value
        depth[window][deeper] = distance[deeper]
    return Volume(out, geometry)


def _nudged(geometry: Geometry) -> Geometry:
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.index_to_world((_TIE_VOXELS,) * 3)
    return Geometry(geometry.shape, affine)


def _signed_distance(mask: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float32]:
    """Millimetres between each voxel's centre and the nearest one across the border, negative inside."""
    inside = scipy.ndimage.distance_transform_edt(mask, sampling=geometry.spacing_mm)
    outside = scipy.ndimage.distance_transform_edt(~mask, sampling=geometry.spacing_mm)
    return np.asarray(outside - inside, dtype=np.float32)


def _fallen_in(mask: NDArray[np.bool_], place: Geometry, geometry: Geometry) -> NDArray[np.bool_]:
    """The voxels of a grid in which a mask's voxel centres lie."""
    fallen = np.zeros(geometry.shape, bool)
    at = np.rint(geometry.world_to_index(place.index_to_world(np.argwhere(mask)))).astype(int)
    inside = ((at >= 0) & (at < geometry.shape)).all(axis=1)
    fallen[tuple(at[inside].T)] = True
    return fallen


def _window(place: Geometry, geometry: Geometry) -> tuple[tuple[slice, slice, slice], bool]:
    """The voxels of a grid that can lie in a box, and whether there are any."""
    corners = geometry.world_to_index(place.corners_mm())
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, geometry.shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, geometry.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (i, j, k), bool((high > low).all())
