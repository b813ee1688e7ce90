"""Signed distances (mm, negative inside) of the primitives the anatomy is made of, for points (3, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]


def ellipsoid(points: Array, centre: ArrayLike, radii: ArrayLike, rotation: NDArray[np.float64] | None = None) -> Array:
    """An ellipsoid's distance to first order: f / |grad f|, exact on the surface (Quilez, "ellipsoid bound")."""
    c, r = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    local = [points[axis] - c[axis] for axis in range(3)]
    if rotation is not None:
        m = rotation.T.astype(np.float32)
        local = [m[axis, 0] * local[0] + m[axis, 1] * local[1] + m[axis, 2] * local[2] for axis in range(3)]
    k0 = sum((local[axis] / r[axis]) ** 2 for axis in range(3))
    k1 = sum((local[axis] / r[axis] ** 2) ** 2 for axis in range(3))
    k0 = np.sqrt(k0)
    distance: Array = k0 * (k0 - 1) / np.maximum(np.sqrt(k1), np.float32(1e-6))
    return distance


def cone(points: Array, start: ArrayLike, end: ArrayLike, start_radius: float, end_radius: float) -> Array:
    """A capsule whose radius changes linearly from one end to the other."""
    a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
    axis = b - a
    x, y, z = points[0] - a[0], points[1] - a[1], points[2] - a[2]
    share = (x * axis[0] + y * axis[1] + z * axis[2]) / np.float32(max(float(axis @ axis), 1e-6))
    share = np.clip(share, 0, 1)
    gap = np.sqrt((x - share * axis[0]) ** 2 + (y - share * axis[1]) ** 2 + (z - share * axis[2]) ** 2)
    distance: Array = gap - (start_radius + share * np.float32(end_radius - start_radius))
    return distance


def tube(points: Array, path: Sequence[ArrayLike], radius: float) -> Array:
    """A tube of one radius along a polygon."""
    distance = cone(points, path[0], path[1], radius, radius)
    for start, end in pairwise(path[1:]):
        distance = np.minimum(distance, cone(points, start, end, radius, radius))
    return distance


def smooth_union(first: Array, second: Array, blend_mm: float) -> Array:
    """Union with a rounded seam (Quilez, polynomial smooth minimum)."""
    share = np.clip(0.5 + (second - first) / np.float32(2 * blend_mm), 0, 1)
    blended: Array = second + (first - second) * share - np.float32(blend_mm) * share * (1 - share)
    return blended


def smooth_intersection(first: Array, second: Array, blend_mm: float) -> Array:
    """What both have in common."""
    return -smooth_union(-first, -second, blend_mm)


def smooth_difference(first: Array, second: Array, blend_mm: float) -> Array:
    """What of the first is not in the second."""
    return -smooth_union(-first, second, blend_mm)


def rotation_about(axis: ArrayLike, angle_rad: float) -> NDArray[np.float64]:
    """3 x 3 rotation (Rodrigues)."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation: NDArray[np.float64] = np.eye(3) + np.sin(angle_rad) * cross + (1 - np.cos(angle_rad)) * cross @ cross
    return rotation
