"""Vessel trees that grow inside the liver, with their bifurcations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom.shapes import rotation_about

Array = NDArray[np.float32]
Point = NDArray[np.float64]

# Murray's law for two equal daughters: r³ = 2 r_d³.
MURRAY_RATIO = 2 ** (-1 / 3)
SMALLEST_RADIUS_MM = 1.3
LENGTH_PER_RADIUS = 6.0


@dataclass(frozen=True)
class Branch:
    """A straight piece of vessel that narrows from one end to the other."""

    start: Point
    end: Point
    start_radius_mm: float
    end_radius_mm: float


@dataclass(frozen=True)
class Tree:
    """A vessel tree: its branches and the points where one becomes two."""

    branches: tuple[Branch, ...]
    bifurcations: tuple[Point, ...]


def grow(
    rng: np.random.Generator,
    depth_inside: Callable[[Array], Array],
    stem: list[Point],
    radius_mm: float,
    margin_mm: float = 5.0,
) -> Tree:
    """Grows a tree from the end of `stem` on, each branch splitting in two by Murray's law.

    Args:
        depth_inside: signed distance (negative inside the organ) of points (3, N).
        stem: the vessel's course up to its first bifurcation (at least two points).
        radius_mm: of the stem.
        margin_mm: branches end at least this deep inside the organ.
    """
    branches = [Branch(a, b, radius_mm, radius_mm) for a, b in pairwise(stem)]
    bifurcations: list[Point] = []
    tips = [(stem[-1], _unit(stem[-1] - stem[-2]), radius_mm)]
    while tips:
        start, heading, radius = tips.pop(0)
        daughters = _daughters(rng, depth_inside, start, heading, radius, margin_mm)
        if len(daughters) == 2:
            bifurcations.append(start)
        for end, daughter_radius in daughters:
            branches.append(Branch(start, end, min(radius, daughter_radius * 1.1), daughter_radius))
            tips.append((end, _unit(end - start), daughter_radius))
    return Tree(tuple(branches), tuple(bifurcations))


def _daughters(
    rng: np.random.Generator,
    depth_inside: Callable[[Array], Array],
    start: Point,
    heading: Point,
    radius: float,
    margin_mm: float,
) -> list[tuple[Point, float]]:
    share = rng.uniform(0.35, 0.65)
    found: list[tuple[Point, float]] = []
    normal = _unit(np.cross(heading, rng.standard_normal(3)))
    for side, volume_share in ((1.0, share), (-1.0, 1 - share)):
        daughter_radius = radius * volume_share ** (1 / 3)
        if daughter_radius < SMALLEST_RADIUS_MM:
            continue
        end = _reach(rng, depth_inside, start, heading, side * normal, daughter_radius, margin_mm)
        if end is not None:
            found.append((end, daughter_radius))
    return found


def _reach(
    rng: np.random.Generator,
    depth_inside: Callable[[Array], Array],
    start: Point,
    heading: Point,
    normal: Point,
    radius: float,
    margin_mm: float,
) -> Point | None:
    """An end point for a daughter that stays inside the organ; of 12 tries the first that does."""
    tries = 12
    angles = np.deg2rad(rng.uniform(18, 55, tries))
    twists = rng.normal(0, 0.5, tries)
    lengths = np.clip(radius * LENGTH_PER_RADIUS, 10, 30) * rng.uniform(0.75, 1.35, tries)
    ends = []
    for angle, twist, length in zip(angles, twists, lengths, strict=True):
        axis = rotation_about(heading, twist) @ normal
        ends.append(start + length * (rotation_about(axis, angle) @ heading))
    candidates = np.array(ends)
    inside = depth_inside(np.ascontiguousarray(candidates.T, dtype=np.float32)) < -margin_mm
    return candidates[int(np.argmax(inside))] if inside.any() else None


def _unit(vector: Point) -> Point:
    direction: Point = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return direction
