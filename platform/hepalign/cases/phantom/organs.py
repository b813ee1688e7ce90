"""The liver's neighbours: stomach, spleen, pancreas, kidneys, gallbladder, bowel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom import shapes
from hepalign.cases.phantom.draft import Array, Distance, Draft, Point, Trunk, blob


def add_left_organs(draft: Draft, trunk: Trunk) -> None:
    """Stomach with its gas, spleen, pancreas."""
    cavity, dome, width, depth = trunk.cavity, trunk.diaphragm, trunk.width, trunk.depth
    rng = draft.rng
    spleen_centre = np.array([-0.76 * width, -0.5 * depth, 8 + rng.uniform(-12, 12)])
    spleen_radii = np.array([26.0, 42.0, 54.0]) * rng.uniform(0.85, 1.15)
    tilt = shapes.rotation_about((0, 0, 1), -0.6)
    stomach_centre = np.array([-0.5 * width, 0.32 * depth, 14.0])
    stomach_radii = np.array([42.0, 38.0, 50.0]) * rng.uniform(0.75, 1.15)
    gas_level = stomach_centre[1] + stomach_radii[1] * rng.uniform(0.1, 0.6)

    def spleen(points: Array) -> Array:
        solid = shapes.ellipsoid(points, spleen_centre, spleen_radii, tilt)
        return np.maximum(np.maximum(solid, cavity(points) + 4), dome(points) + 2)

    def stomach(points: Array) -> Array:
        body = shapes.ellipsoid(points, stomach_centre, stomach_radii)
        antrum = shapes.ellipsoid(points, (-0.2 * width, 0.42 * depth, -26), (46, 24, 22))
        return np.maximum(np.maximum(shapes.smooth_union(body, antrum, 12), cavity(points) + 5), dome(points) + 3)

    def lumen(points: Array) -> Array:
        return stomach(points) + 4

    def gas(points: Array) -> Array:
        return np.asarray(np.maximum(lumen(points), np.float32(gas_level) - points[1]), np.float32)

    reach = stomach_radii + np.array([40, 10, 25])
    centre = stomach_centre + np.array([25, 0, -15])
    draft.add("stomach", "bowel_wall", stomach, centre, reach)
    draft.add("stomach_content", "fluid", lumen, centre, reach)
    draft.add("stomach_gas", "gas", gas, centre, reach)
    draft.add("spleen", "spleen", spleen, spleen_centre, np.full(3, spleen_radii.max() + 4))
    path = [
        np.array([x * width, y * depth, z])
        for x, y, z in ((-0.6, -0.35, 10), (-0.35, -0.1, 2), (-0.1, 0.02, -8), (0.12, 0.0, -22), (0.2, 0.02, -42))
    ]
    draft.add("pancreas", "pancreas", lambda points: shapes.tube(points, path, 10.0), (-25, -10, -15), (75, 40, 45))


def add_kidneys(draft: Draft, width: float, depth: float) -> None:
    """Both kidneys: cortex, medulla, the sinus's fat."""
    rng = draft.rng
    for side, name, level in ((1, "right_kidney", -62.0), (-1, "left_kidney", -48.0)):
        centre = np.array([side * 0.47 * width, -0.62 * depth, level + rng.uniform(-8, 8)])
        radii = np.array([27.0, 25.0, 53.0]) * rng.uniform(0.92, 1.06)
        tilt = shapes.rotation_about((0, 1, 0), side * 0.2)
        _add_kidney(draft, name, side, centre, radii, tilt)


def _add_kidney(draft: Draft, name: str, side: int, centre: Point, radii: Point, tilt: NDArray[np.float64]) -> None:
    sinus_centre = centre - np.array([side * 12.0, -4, 0])

    def whole(points: Array) -> Array:
        return shapes.ellipsoid(points, centre, radii, tilt)

    def sinus(points: Array) -> Array:
        return shapes.ellipsoid(points, sinus_centre, radii * np.array([0.55, 0.36, 0.5]), tilt)

    def medulla(points: Array) -> Array:
        return np.maximum(whole(points) + 7, 2 - sinus(points))

    reach = np.full(3, radii.max() + 3)
    draft.add(name, "kidney_cortex", whole, centre, reach)
    draft.add(f"{name}_medulla", "kidney_medulla", medulla, centre, reach)
    draft.add(f"{name}_sinus", "fat", sinus, centre, reach)


def add_gallbladder(draft: Draft) -> None:
    """The gallbladder under the liver."""
    rng = draft.rng
    centre = np.array([38 + rng.uniform(-6, 6), 36 + rng.uniform(-6, 6), -48.0])
    radii = np.array([13.0, 15.0, 27.0]) * rng.uniform(0.7, 1.15)
    tilt = shapes.rotation_about((1, 0, 0), 0.5)
    draft.add("gallbladder", "bile", blob(centre, radii, tilt), centre, np.full(3, 34.0))


def add_bowel(draft: Draft, trunk: Trunk) -> None:
    """Small bowel in loops at random, the colon along its frame."""
    cavity, width, depth = trunk.cavity, trunk.width, trunk.depth
    rng = draft.rng
    for loop in range(18):
        low, high = ((-0.8, -0.25, -185), (0.75, 0.75, -62)) if loop < 13 else ((-0.85, -0.3, -75), (-0.25, 0.6, -25))
        start = rng.uniform(low, high) * (width, depth, 1)
        path = [start]
        heading = rng.standard_normal(3) * (1, 0.7, 0.5)
        for _ in range(3):
            heading = heading + rng.standard_normal(3) * 0.8
            path.append(path[-1] + heading / np.linalg.norm(heading) * 22)
        _add_loop(draft, f"bowel_{loop}", path, rng.uniform(9, 14), cavity, [0.12, 0.18, 0.7])
    frame = [(0.8, -0.2, -190), (0.78, 0.05, -100), (0.5, 0.62, -92), (0.0, 0.72, -84), (-0.5, 0.6, -62)]
    frame += [(-0.82, 0.05, -20), (-0.86, -0.3, -90), (-0.82, -0.3, -190)]
    course = [np.array([x * width, y * depth, z]) + rng.normal(0, 5, 3) for x, y, z in frame]
    for number, (start, end) in enumerate(pairwise(course)):
        middle = (start + end) / 2 + rng.normal(0, 5, 3)
        _add_loop(draft, f"colon_{number}", [start, middle, end], rng.uniform(15, 21), cavity, [0.35, 0.6, 0.05])


def _add_loop(draft: Draft, name: str, path: list[Point], radius: float, cavity: Distance, shares: list[float]) -> None:
    def wall(points: Array) -> Array:
        return np.maximum(shapes.tube(points, path, radius), cavity(points) + 4)

    def lumen(points: Array) -> Array:
        return wall(points) + 3

    content = str(draft.rng.choice(["gas", "stool", "fluid"], p=shares))
    corners = np.array(path)
    middle, reach = (corners.max(0) + corners.min(0)) / 2, (corners.max(0) - corners.min(0)) / 2 + radius + 2
    draft.add(name, "bowel_wall", wall, middle, reach)
    draft.add(f"{name}_content", content, lumen, middle, reach)
