"""Linear maps of the world as 4 x 4 matrices (RAS millimetres), acting on column points."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hepalign.errors import UsageError

# RAS and LPS differ by the sign of x and y; the matrix is its own inverse.
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The same for displacements.
RAS_LPS_VECTOR = np.array([-1.0, -1.0, 1.0], dtype=np.float32)


def translation(offset_mm: ArrayLike) -> NDArray[np.float64]:
    """The map x -> x + offset."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset_mm
    return matrix


def rotation(angles_deg: ArrayLike, centre_mm: ArrayLike = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """Rotation about the world's x, then y, then z axis (right-handed) through `centre_mm`."""
    ax, ay, az = np.deg2rad(np.asarray(angles_deg, dtype=np.float64))
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about(about_z @ about_y @ about_x, centre_mm)


def about(matrix: NDArray[np.float64], centre_mm: ArrayLike) -> NDArray[np.float64]:
    """The 3 x 3 map applied around a centre that stays where it is."""
    centre = np.asarray(centre_mm, dtype=np.float64)
    result = np.eye(4)
    result[:3, :3] = matrix
    result[:3, 3] = centre - matrix @ centre
    return result


def apply(matrix: NDArray[np.float64], points_mm: ArrayLike) -> NDArray[np.float64]:
    """Map points (..., 3)."""
    points: NDArray[np.float64] = np.asarray(points_mm, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return points


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map back.

    Raises:
        UsageError: `singular_map` when there is none.
    """
    try:
        return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise UsageError("a linear map that flattens space has no inverse", code="singular_map") from error


def to_lps(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map written in LPS coordinates (and back: the function is its own inverse)."""
    flipped: NDArray[np.float64] = RAS_LPS @ matrix @ RAS_LPS
    return flipped


def fit_affine(from_mm: ArrayLike, to_mm: ArrayLike) -> NDArray[np.float64]:
    """The affine map that takes points (N, 3) nearest to others in least squares; N >= 4, not in one plane.

    Raises:
        UsageError: `too_few_points` when the points do not determine the map.
    """
    source, target = _pairs(from_mm, to_mm, 4)
    rows = np.c_[source, np.ones(len(source))]
    solution, _, rank, _ = np.linalg.lstsq(rows, target, rcond=None)
    if rank < 4:
        raise UsageError("the points lie in one plane; an affine fit needs four that do not", code="too_few_points")
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return matrix


def fit_rigid(from_mm: ArrayLike, to_mm: ArrayLike) -> NDArray[np.float64]:
    """The rotation and translation that take points (N, 3) nearest to others (Kabsch 1976); N >= 3.

    Raises:
        UsageError: `too_few_points`.
    """
    source, target = _pairs(from_mm, to_mm, 3)
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    u, _, vt = np.linalg.svd((source - source_mean).T @ (target - target_mean))
    handedness = np.sign(np.linalg.det(vt.T @ u.T))
    matrix = np.eye(4)
    matrix[:3, :3] = vt.T @ np.diag([1.0, 1.0, handedness]) @ u.T
    matrix[:3, 3] = target_mean - matrix[:3, :3] @ source_mean
    return matrix


def _pairs(from_mm: ArrayLike, to_mm: ArrayLike, least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    source, target = np.asarray(from_mm, dtype=np.float64), np.asarray(to_mm, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) < least:
        message = f"a fit needs at least {least} pairs of points, got {source.shape} and {target.shape}"
        raise UsageError(message, code="too_few_points")
    return source, target
