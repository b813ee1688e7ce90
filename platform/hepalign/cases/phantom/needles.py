"""Needles from the skin to a tumour, the share of each voxel they fill, and the coarse mask an operator would draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom.shapes import cone
from hepalign.image.geometry import Geometry

Array = NDArray[np.float32]
Point = NDArray[np.float64]
Distance = Callable[[Array], Array]

SUBSAMPLES = 3
OUTSIDE_SKIN_MM = 60.0
VISIBLE_ARTEFACT_HU = 60.0
COVERED_SHARE = 0.9


@dataclass(frozen=True)
class Needle:
    """A straight probe, world millimetres of the iCT."""

    tip: Point
    tail: Point
    radius_mm: float


def draw_needles(
    rng: np.random.Generator, count: int, target: Point, body: Distance, forbidden: Distance | None = None
) -> list[Needle]:
    """Needles that enter from the front or the patient's right and end in or just past the target.

    Args:
        rng: draws courses.
        count: how many.
        target: tumour centre, world mm of the image.
        body: signed distance of the skin at image points (3, N).
        forbidden: signed distance of what a course should not cross (bone, lung), if known.
    """
    azimuth = rng.uniform(-25, 100)
    elevation = rng.choice([0.0, rng.uniform(-25, 15)])
    needles = []
    across = rng.standard_normal(3)
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


def coarse_mask(
    needles: list[Needle], difference: Array, body: NDArray[np.bool_], geometry: Geometry
) -> NDArray[np.bool_]:
    """Capsules about the needles and their extension, just wide enough for 90 % of the artefact one sees near them.

    Args:
        needles: in the iCT's world.
        difference: artefact, HU.
        body: voxels of the patient.
        geometry: the iCT's grid.
    """
    points = np.ascontiguousarray(np.moveaxis(geometry.grid_mm(), -1, 0), dtype=np.float32)
    distance = np.full(geometry.shape, np.inf, np.float32)
    for needle in needles:
        heading = (needle.tip - needle.tail) / np.linalg.norm(needle.tip - needle.tail)
        distance = np.minimum(distance, cone(points, needle.tip + 24 * heading, needle.tail, 0.0, 0.0))
    visible = (np.abs(difference) > VISIBLE_ARTEFACT_HU) & body & (distance < 24)
    seen = distance[visible]
    reach = float(np.quantile(seen, COVERED_SHARE)) if seen.size else 0.0
    radius = float(np.clip(reach + 2, 8.0, 18.0))
    return (distance < radius) & body


def _box(needle: Needle, geometry: Geometry, margin_mm: float) -> tuple[slice, ...] | None:
    ends = geometry.world_to_index(np.array([needle.tip, needle.tail]))
    margin = margin_mm / np.asarray(geometry.spacing_mm)
    low = np.maximum(np.floor(ends.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0) + margin) + 1, geometry.shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)) if (high > low).all() else None


def _points(geometry: Geometry, box: tuple[slice, ...]) -> Array:
    indices = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in box], indexing="ij"), axis=-1)
    return np.ascontiguousarray(np.moveaxis(geometry.index_to_world(indices), -1, 0), dtype=np.float32)
