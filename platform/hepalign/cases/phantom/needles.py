"""Needles from the skin to a tumour, the share of each voxel they fill, and the coarse mask an operator would draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hepalign.cases.phantom.shapes import cone
from hepalign.image.geometry import Geometry

Array = NDArray[np.float32]
Point = NDArray[np.float64]
Distance = Callable[[Array], Array]

# A trajectory is planned: between the ribs, below the lung, past the gut.
PLANS = 100
CLEARANCE_MM, COURSE_STEP_MM = 3.0, 2.0
BONE_HU, GAS_HU, GAS_AT_TARGET_MM = 300.0, -400.0, 30.0
SUBSAMPLES = 3
OUTSIDE_SKIN_MM = 60.0
# Beyond a needle's tip, along its axis, iCTs of ablations show this.
EXTENSION_HU = (-155.0, -100.0)
EXTENSION_CORE_MM = 3.0
VISIBLE_ARTEFACT_HU = 60.0
COVERED_SHARE = 0.95
EXTENSION_REACH_MM = (15.0, 60.0)
MASK_RADIUS_MM = (7.0, 16.0)


@dataclass(frozen=True)
class Needle:
    """A straight probe, world millimetres of the iCT."""

    tip: Point
    tail: Point
    radius_mm: float

    @property
    def heading(self) -> Point:
        """Unit vector from the skin to the tip and on."""
        direction: Point = (self.tip - self.tail) / np.linalg.norm(self.tip - self.tail)
        return direction


def draw_needles(rng: np.random.Generator, count: int, target: Point, body: Distance, hu: Distance) -> list[Needle]:
    """Needles that enter from the front or the patient's right, end in or just past the target and spare bone and lung.

    Args:
        rng: draws courses; of `PLANS` the first that meets nothing is taken, else the one that meets least.
        count: how many.
        target: tumour centre, world mm of the image.
        body: signed distance of the skin at image points (3, N).
        hu: the clean scan's HU at image points (3, N).
    """
    best: list[Needle] = []
    least_mm = np.inf
    for _ in range(PLANS):
        plan = _draw_plan(rng, count, target, body)
        met_mm = sum(_obstructed_mm(needle, target, body, hu) for needle in plan)
        if met_mm < least_mm:
            best, least_mm = plan, met_mm
        if not met_mm:
            break
    return best


def _draw_plan(rng: np.random.Generator, count: int, target: Point, body: Distance) -> list[Needle]:
    azimuth = rng.uniform(-25, 100)
    elevation = rng.choice([0.0, rng.uniform(-30, 20)])
    needles = []
    # Side by side rather than above each other: one gap between two ribs lets them all through.
    across = rng.standard_normal(3) * (1, 1, 0.4)
    for number in range(count):
        heading = _heading(azimuth + rng.uniform(-4, 4), elevation + rng.uniform(-3, 3))
        offset = np.zeros(3)
        if number:
            side = across - (across @ heading) * heading
            offset = side / np.linalg.norm(side) * rng.uniform(8, 14) * (1 if number == 1 else -1)
        tip = target + offset - heading * rng.uniform(0, 8)
        needles.append(
            Needle(tip, tip + heading * (_depth(tip, heading, body) + OUTSIDE_SKIN_MM), rng.uniform(0.75, 1.2))
        )
    return needles


def _obstructed_mm(needle: Needle, target: Point, body: Distance, hu: Distance) -> float:
    """Millimetres of bone, and of lung or gut's gas, within a needle's clearance on its way through the body."""
    length = float(np.linalg.norm(needle.tail - needle.tip))
    sides = np.linalg.svd(needle.heading[None])[2][1:] * CLEARANCE_MM
    starts = needle.tip + np.array([np.zeros(3), sides[0], -sides[0], sides[1], -sides[1]])
    along = np.arange(0.0, length, COURSE_STEP_MM)
    course = starts[:, None] - along[None, :, None] * needle.heading
    points = np.ascontiguousarray(course.reshape(-1, 3).T, dtype=np.float32)
    values = hu(points)
    inside = body(points) < -CLEARANCE_MM
    # The ablation's own bubbles about the target are no obstacle.
    far = np.linalg.norm(points - target.astype(np.float32)[:, None], axis=0) > GAS_AT_TARGET_MM
    met = inside & ((values > BONE_HU) | ((values < GAS_HU) & far))
    return float(met.reshape(len(starts), -1).any(axis=0).sum() * COURSE_STEP_MM)


def _heading(azimuth_deg: float, elevation_deg: float) -> Point:
    """From the tip outwards: azimuth 0 is straight right, 90 straight anterior."""
    a, e = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    return np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])


def _depth(tip: Point, heading: Point, body: Distance) -> float:
    steps = np.arange(0.0, 300.0, 4.0)
    course = (tip[:, None] + heading[:, None] * steps).astype(np.float32)
    outside = np.flatnonzero(body(course) > 0)
    return float(steps[outside[0]]) if outside.size else 300.0


def metal_share(needles: list[Needle], geometry: Geometry) -> Array:
    """Volume share of metal in each voxel, (D, H, W), by 3 × 3 × 3 subsamples near the needles."""
    share = np.zeros(geometry.shape, np.float32)
    for needle in needles:
        box = _box(needle, geometry, needle.radius_mm + 2 * max(geometry.spacing_mm))
        if box is None:
            continue
        centres = _points(geometry, box)
        near = cone(centres, needle.tip, needle.tail, needle.radius_mm, needle.radius_mm) < max(geometry.spacing_mm)
        chosen = centres[:, near]
        total = np.zeros(chosen.shape[1], np.float32)
        offsets = (np.arange(SUBSAMPLES) - (SUBSAMPLES - 1) / 2) / SUBSAMPLES
        fine_mm = min(geometry.spacing_mm) / SUBSAMPLES
        for offset in np.array(np.meshgrid(offsets, offsets, offsets)).reshape(3, -1).T:
            shift = (geometry.affine[:3, :3] @ offset).astype(np.float32)
            gap = cone(chosen + shift[:, None], needle.tip, needle.tail, needle.radius_mm, needle.radius_mm)
            total += np.clip(np.float32(0.5) - gap / np.float32(fine_mm), 0, 1)
        part = share[box]
        part[near] = np.maximum(part[near], total / SUBSAMPLES**3)
    return share


def damp_streaks(rng: np.random.Generator, difference: Array, needles: list[Needle], geometry: Geometry) -> Array:
    """The artefact as a scanner that filters starved rays shows it: -100 to -155 HU in a needle's extension.

    Only artefacts that are stronger are damped, and only away from the metal itself.
    """
    points = grid_points(geometry)
    along = np.full(geometry.shape, np.inf, np.float32)
    metal = along.copy()
    for needle in needles:
        along = np.minimum(along, cone(points, needle.tip + 4 * needle.heading, needle.tip + 16 * needle.heading, 0, 0))
        metal = np.minimum(metal, cone(points, needle.tip, needle.tail, 0, 0))
    extension = (along < EXTENSION_CORE_MM) & (metal > EXTENSION_CORE_MM)
    depth_hu = float(difference[extension].mean()) if extension.any() else 0.0
    wanted_hu = float(rng.uniform(*EXTENSION_HU))
    if depth_hu > wanted_hu:
        return difference
    keep = np.clip((2.5 * EXTENSION_CORE_MM - metal) / EXTENSION_CORE_MM, 0, 1) * (difference > 0)
    damping = np.float32(wanted_hu / depth_hu)
    return np.asarray(difference * (damping + (1 - damping) * keep), np.float32)


def coarse_mask(
    needles: list[Needle], difference: Array, body: NDArray[np.bool_], geometry: Geometry
) -> NDArray[np.bool_]:
    """What an operator would draw: capsules along the needles and on past their tips, as wide as what one sees.

    Args:
        needles: in the iCT's world.
        difference: artefact, HU.
        body: voxels of the patient.
        geometry: the iCT's grid.
    """
    points = grid_points(geometry)
    visible = (np.abs(gaussian_filter(difference, 0.7)) > VISIBLE_ARTEFACT_HU) & body
    mask = np.zeros(geometry.shape, bool)
    for needle in needles:
        shaft = cone(points, needle.tip, needle.tail, 0.0, 0.0)
        past = np.tensordot(needle.heading.astype(np.float32), points, axes=1) - np.float32(needle.heading @ needle.tip)
        ahead = past[visible & (shaft < past + 8) & (past > 0)]
        reach = (
            float(np.clip(np.quantile(ahead, COVERED_SHARE), *EXTENSION_REACH_MM))
            if ahead.size
            else EXTENSION_REACH_MM[0]
        )
        distance = cone(points, needle.tip + reach * needle.heading, needle.tail, 0.0, 0.0)
        beside = distance[visible & (distance < MASK_RADIUS_MM[1])]
        radius = (
            float(np.clip(np.quantile(beside, COVERED_SHARE) + 2, *MASK_RADIUS_MM))
            if beside.size
            else MASK_RADIUS_MM[0]
        )
        mask |= distance < radius
    return mask


def grid_points(geometry: Geometry) -> Array:
    """World positions of the voxels, (3, D, H, W)."""
    i, j, k = (np.arange(n, dtype=np.float64) for n in geometry.shape)
    points = np.empty((3, *geometry.shape), np.float32)
    for axis, row in enumerate(geometry.affine[:3]):
        plane = (row[0] * i[:, None] + row[1] * j[None, :]).astype(np.float32)
        np.add(plane[:, :, None], (row[2] * k + row[3]).astype(np.float32), out=points[axis])
    return points


def _box(needle: Needle, geometry: Geometry, margin_mm: float) -> tuple[slice, ...] | None:
    ends = geometry.world_to_index(np.array([needle.tip, needle.tail]))
    margin = margin_mm / np.asarray(geometry.spacing_mm)
    low = np.maximum(np.floor(ends.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0) + margin) + 1, geometry.shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)) if (high > low).all() else None


def _points(geometry: Geometry, box: tuple[slice, ...]) -> Array:
    indices = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in box], indexing="ij"), axis=-1)
    return np.ascontiguousarray(np.moveaxis(geometry.index_to_world(indices), -1, 0), dtype=np.float32)
