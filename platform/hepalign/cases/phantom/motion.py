"""How a body lies and breathes in one image: an invertible map between image and anatomy.

`image --rigid--> body frame --smooth--> wall frame --slide (inside the cavity only)--> anatomy`.
`smooth` and `slide` are flows of velocities, so neither folds; the slide keeps every point's distance to the cavity's
wall near it, so the organs glide along it and never through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom.lattice import Lattice, flow, inverse, smooth_noise, solve_shift
from hepalign.cases.phantom.shapes import rotation_about

Array = NDArray[np.float32]
Point = NDArray[np.float64]
Distance = Callable[[Array], Array]

SLIDE_STEP_MM, SMOOTH_STEP_MM = 6.0, 10.0
RESIDUAL_TOLERANCE_MM = 0.15
STIFF_SHARE = 0.4
# Depth below the wall over which the organs' motion turns tangential.
GLIDE_DEPTH_MM = 14.0
# How deep the distance to the wall is kept, fading; what rounding puts through the wall goes back by a hair.
KEPT_DEPTH_MM, HAIR_MM = 12.0, 0.01
SLIDE_ROUNDS, SLIDE_TOLERANCE_MM = 48, 5e-4


@dataclass(frozen=True, eq=False)
class Motion:
    """One image's map to the anatomy.

    Args:
        rigid: 4 x 4, image world to body frame (the session: how the patient lies on the table).
        smooth, smooth_back: displacement lattices of the smooth residual and of its inverse.
        slide, slide_back: the same of the breathing inside the cavity; None where nothing breathes.
        cavity: signed distance of the wall (negative inside), in the wall frame and the anatomy alike; None where
            nothing slides and the breathing holds everywhere.
    """

    rigid: NDArray[np.float64]
    smooth: Lattice | None = None
    smooth_back: Lattice | None = None
    slide: Lattice | None = None
    slide_back: Lattice | None = None
    cavity: Lattice | None = None

    def to_anatomy(self, points: Array) -> Array:
        """Image world points (3, ...) to anatomy points."""
        moved = apply_linear(self.rigid, points)
        if self.smooth is not None:
            moved += self.smooth.read(moved)
        inside = self._inside(moved)
        moved[:, inside] = self._slid(moved[:, inside])
        return moved

    def from_anatomy(self, points: Array, iterations: int = 5) -> Array:
        """The inverse of `to_anatomy`; five iterations leave about 0.01 mm."""
        moved = points.copy()
        inside = self._inside(points)
        moved[:, inside] = self._unslid(points[:, inside])
        if self.smooth is not None and self.smooth_back is not None:
            moved = solve_shift(self.smooth, moved, self.smooth_back, iterations)
        return apply_linear(np.linalg.inv(self.rigid).astype(np.float64), moved)

    def _inside(self, points: Array) -> NDArray[np.bool_]:
        if self.cavity is None:
            return np.full(points.shape[1:], self.slide is not None)
        return np.asarray(self.cavity.read(points)[0] < 0)

    def _slid(self, points: Array) -> Array:
        """Where points (3, N) slide to; near the wall they keep their distance to it, so that none passes it."""
        if self.slide is None:
            return points
        moved = points + self.slide.read(points)
        if self.cavity is None:
            return moved
        depth = self.cavity.read(points)[0]
        near = np.flatnonzero(np.abs(depth) < KEPT_DEPTH_MM)
        end, depth = moved[:, near], depth[near]
        share = 1 - np.abs(depth) / np.float32(KEPT_DEPTH_MM)
        end += share * share * (3 - 2 * share) * (_onto_level(self.cavity, end, depth, 2) - end)
        moved[:, near] = _on_its_side(self.cavity, end, depth)
        return moved

    def _unslid(self, targets: Array) -> Array:
        """Where points (3, N) slid from, by a fixed-point iteration that goes on, more slowly, where it must."""
        if self.slide_back is None:
            return targets
        points = targets + self.slide_back.read(targets)
        open_ = np.arange(points.shape[1])
        for number in range(SLIDE_ROUNDS):
            gap = self._slid(points[:, open_]) - targets[:, open_]
            points[:, open_] -= gap if number < SLIDE_ROUNDS // 4 else gap / 2
            open_ = open_[np.abs(gap).max(axis=0) > SLIDE_TOLERANCE_MM]
            if not open_.size:
                break
        return points if self.cavity is None else _on_its_side(self.cavity, points, np.full(points.shape[1], -1))


def _onto_level(distance: Lattice, points: Array, level_mm: Array | np.float32, iterations: int) -> Array:
    """Points (3, N) moved to where the distance is `level_mm`, along its gradient (Newton)."""
    step = np.float32(1.0)
    for _ in range(iterations):
        gradient = np.empty_like(points)
        for axis in range(3):
            ahead, behind = points.copy(), points.copy()
            ahead[axis] += step
            behind[axis] -= step
            gradient[axis] = (distance.read(ahead)[0] - distance.read(behind)[0]) / (2 * step)
        squared = np.maximum((gradient**2).sum(0), np.float32(0.05))
        points = points - gradient * ((distance.read(points)[0] - level_mm) / squared)
    return points


def _on_its_side(distance: Lattice, points: Array, depth: Array) -> Array:
    """Points (3, N) that ended on the wall's other side than `depth` says, put back by a hair's breadth."""
    astray = np.flatnonzero((distance.read(points)[0] < 0) != (depth < 0))
    level_mm = np.where(depth[astray] < 0, np.float32(-HAIR_MM), np.float32(HAIR_MM))
    points[:, astray] = _onto_level(distance, points[:, astray], level_mm, 6)
    return points


def apply_linear(matrix: NDArray[np.float64], points: Array) -> Array:
    """A 4 x 4 map of points (3, ...)."""
    m = matrix.astype(np.float32)
    moved = [m[r, 0] * points[0] + m[r, 1] * points[1] + m[r, 2] * points[2] + m[r, 3] for r in range(3)]
    return np.array(moved, dtype=np.float32)


def rigid_about(centre: Point, angles_deg: Point, shift_mm: Point) -> NDArray[np.float64]:
    """Rotation about a centre by three angles (about x, y, z), then a shift, 4 x 4."""
    rotation = np.eye(3)
    for axis, angle in zip(np.eye(3), np.deg2rad(angles_deg), strict=True):
        rotation = rotation_about(axis, float(angle)) @ rotation
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + shift_mm
    return matrix


def rigid_residual_mm(source: Point, target: Point) -> float:
    """Mean distance left after the best rigid map (Kabsch 1976) of points (N, 3) to their partners."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    return float(np.linalg.norm(a @ u @ vt - b, axis=1).mean())


def draw_motion(
    rng: np.random.Generator,
    *,
    low_mm: Point,
    high_mm: Point,
    cavity: Distance,
    breathing_mm: float,
    rigid: NDArray[np.float64],
    residual_mm: float,
    liver_points: Array,
    sliding: bool = True,
) -> Motion:
    """Draws a motion whose best rigid fit leaves `residual_mm`, on average, at the liver's points.

    Args:
        rng: draws the shape of the motion.
        low_mm, high_mm: box of the body frame that is covered.
        cavity: signed distance of the wall.
        breathing_mm: cranio-caudal excursion at the dome, signed (positive: the image's organs lie lower).
        rigid: image world to body frame.
        residual_mm: what the best rigid map is to leave.
        liver_points: (3, N), anatomy.
        sliding: organs glide along the wall; otherwise breathing fades out smoothly towards it.
    """
    nodes = Lattice.nodes(low_mm, high_mm, SLIDE_STEP_MM)
    wall = Lattice(cavity(nodes)[None], low_mm, SLIDE_STEP_MM)
    velocity = _breathing(rng, nodes, wall.values[0], breathing_mm, sliding)
    slide = flow(Lattice(velocity, low_mm, SLIDE_STEP_MM))
    slide_back = inverse(slide)
    coarse = Lattice.nodes(low_mm, high_mm, SMOOTH_STEP_MM)
    residual = _residual(rng, coarse.shape[1:]) * _softness(wall.read(coarse)[0])

    def build(strength: float) -> Motion:
        smooth = flow(Lattice(residual * np.float32(strength), low_mm, SMOOTH_STEP_MM))
        back = flow(Lattice(residual * np.float32(-strength), low_mm, SMOOTH_STEP_MM))
        return Motion(rigid, smooth, back, slide, slide_back, wall if sliding else None)

    return _fit_strength(build, liver_points, residual_mm)


def _softness(wall_distance: Array) -> Array:
    """Wall, ribs and spine bend less than the organs between them."""
    share = np.clip(0.5 - wall_distance / 50, 0, 1)
    return np.asarray(STIFF_SHARE + (1 - STIFF_SHARE) * share * share * (3 - 2 * share), np.float32)


def _fit_strength(build: Callable[[float], Motion], liver_points: Array, residual_mm: float) -> Motion:
    """Bisection, by regula falsi, on the residual's strength."""
    low, high = 0.0, 12.0
    strength = 4.0
    for _ in range(8):
        motion = build(strength)
        image_points = motion.from_anatomy(liver_points).T.astype(np.float64)
        left = rigid_residual_mm(liver_points.T.astype(np.float64), image_points)
        if abs(left - residual_mm) < RESIDUAL_TOLERANCE_MM:
            break
        low, high = (strength, high) if left < residual_mm else (low, strength)
        # The residual grows about linearly with its strength: aim there, but stay between what was seen.
        strength = float(np.clip(strength * residual_mm / left, low + 0.05 * (high - low), high - 0.05 * (high - low)))
    # While fitting, the flow of minus the velocity is a good enough guess to start an inverse from.
    return replace(motion, smooth_back=None if motion.smooth is None else inverse(motion.smooth))


def _breathing(rng: np.random.Generator, nodes: Array, distance: Array, amplitude_mm: float, sliding: bool) -> Array:
    """Velocity (3, d, h, w) of breathing: down at the diaphragm, less below, least beside the spine."""
    x, y, z = nodes
    above = np.exp(-((np.maximum(z - 40, 0) / 85) ** 2))
    below = np.exp(-((np.maximum(20 - z, 0) / rng.uniform(110, 170)) ** 2))
    spine = 1 - 0.75 * np.exp(-((x / 45) ** 2) - (((y + 80) / 45) ** 2))
    tilt = 1 + rng.uniform(-0.25, 0.25) * np.tanh(x / 80)
    profile = (above * below * spine * tilt).astype(np.float32)
    velocity = np.stack([np.zeros_like(x), -rng.uniform(0.2, 0.4) * profile, profile]) * np.float32(amplitude_mm)
    if not sliding:
        fade = np.clip(-distance / 35, 0, 1)
        return np.asarray(velocity * (fade * fade * (3 - 2 * fade)), np.float32)
    normal = np.array(np.gradient(distance, SLIDE_STEP_MM), dtype=np.float32)
    normal /= np.maximum(np.sqrt((normal**2).sum(0)), 1e-3)
    across = (velocity * normal).sum(0) * np.exp(-((distance / GLIDE_DEPTH_MM) ** 2))
    return np.asarray(velocity - across * normal, np.float32)


def _residual(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Velocity of unit deviation: mostly long waves (about 30 mm deviation of the kernel), some shorter."""
    long = smooth_noise(rng, 3, shape, 32 / SMOOTH_STEP_MM)
    short = smooth_noise(rng, 3, shape, 18 / SMOOTH_STEP_MM)
    return np.asarray(long + 0.25 * short, np.float32)
