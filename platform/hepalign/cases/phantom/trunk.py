"""The trunk: skin, wall, the cavity and its diaphragm, lungs and heart, spine and ribs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from hepalign.cases.phantom import shapes
from hepalign.cases.phantom.draft import Array, Distance, Draft, Habitus, Point, Trunk, bar, blob

# Exponent of the superellipse that a trunk's axial section is.
SECTION_POWER = 2.4


def draw_habitus(rng: np.random.Generator) -> Habitus:
    """A body from slim to stout."""
    stoutness = rng.beta(2, 2.5)
    fat = 6 + 24 * stoutness + rng.uniform(-2, 2)
    return Habitus(
        half_width=143 + 7 * rng.uniform(-1, 1) + 0.8 * fat,
        half_depth=97 + 6 * rng.uniform(-1, 1) + 0.8 * fat,
        fat=fat,
        wall=rng.uniform(12, 16),
        waist=rng.uniform(0.0, 0.12) * (1 - stoutness),
    )


def build_trunk(draft: Draft) -> tuple[Distance, Trunk]:
    """Lays down skin, fat, wall and cavity; returns the skin's signed distance and the trunk."""
    habitus = draft.habitus
    width = habitus.half_width - 1.1 * habitus.fat
    depth = habitus.half_depth - 0.9 * habitus.fat
    body = _tube_section(habitus.half_width, habitus.half_depth, habitus.waist)
    inner_width, inner_depth = width - habitus.wall, depth - habitus.wall
    cavity = _draw_cavity(inner_width, inner_depth, habitus.waist)
    draft.everywhere("subcutaneous_fat", "fat", body)
    draft.everywhere("wall", "muscle", _tube_section(width, depth, habitus.waist))
    draft.everywhere("abdominal_fat", "fat", cavity)
    return body, Trunk(inner_width, inner_depth, cavity, _draw_diaphragm(draft.rng, inner_width, inner_depth))


def _tube_section(half_width: float, half_depth: float, waist: float, power: float = SECTION_POWER) -> Distance:
    """A trunk: a superellipse that narrows towards the waist (z below 0), distance to first order."""

    def distance(points: Array) -> Array:
        narrowing = 1 - np.float32(waist) * np.clip(-points[2] / 120, 0, 1.2) ** 2
        radius = (np.abs(points[0] / (half_width * narrowing)) ** power + np.abs(points[1] / half_depth) ** power) ** (
            1 / power
        )
        return np.asarray((radius - 1) * np.float32(min(half_width, half_depth)), np.float32)

    return distance


def _draw_cavity(inner_width: float, inner_depth: float, waist: float) -> Distance:
    trunk = _tube_section(inner_width, inner_depth, waist)

    def distance(points: Array) -> Array:
        # The spine and the muscles beside it bulge into the trunk from behind.
        spine = shapes.ellipsoid(points, (0, -inner_depth + 10, 0), (46, 45, 4000))
        apex = points[2] - np.float32(205) + 90 * ((points[0] / inner_width) ** 2 + (points[1] / inner_depth) ** 2)
        return shapes.smooth_difference(np.maximum(trunk(points), apex * 0.6), spine, 10.0)

    return distance


def _draw_diaphragm(rng: np.random.Generator, width: float, depth: float) -> Distance:
    """Signed height above the diaphragm (positive in the lungs)."""
    right_height, left_height = rng.uniform(62, 78), rng.uniform(48, 62)
    right_x, left_x = width * rng.uniform(0.42, 0.5), -width * rng.uniform(0.46, 0.54)

    def height(points: Array) -> Array:
        def dome(centre_x: float, top: float) -> Array:
            across = ((points[0] - np.float32(centre_x)) / (0.62 * width)) ** 2
            across = across + ((points[1] - np.float32(0.08 * depth)) / (1.02 * depth)) ** 2
            # Flat on top, steep beside the wall.
            return np.asarray(top - 100 * across**1.5, np.float32)

        surface = -shapes.smooth_union(-dome(right_x, right_height), -dome(left_x, left_height), 12.0)
        return np.asarray((points[2] - surface) * np.float32(0.6), np.float32)

    return height


def add_lungs_and_heart(draft: Draft, trunk: Trunk) -> None:
    """Lungs above the diaphragm, the mediastinum and the heart between them."""
    cavity, dome, depth = trunk.cavity, trunk.diaphragm, trunk.depth
    heart_centre = np.array([-24.0, 0.2 * depth, 84.0])

    def mediastinum(points: Array) -> Array:
        return shapes.ellipsoid(points, (-2, -0.1 * depth, 0), (30, 0.75 * depth, 4000))

    def heart(points: Array) -> Array:
        return shapes.ellipsoid(points, heart_centre, (66, 0.62 * depth, 50))

    def lungs(points: Array) -> Array:
        middle = np.minimum(mediastinum(points), heart(points) - 3)
        return np.asarray(np.maximum(np.maximum(cavity(points) + 1, 1.5 - dome(points)), -middle), np.float32)

    def chest_soft(points: Array) -> Array:
        return np.maximum(np.maximum(cavity(points) + 2, -dome(points)), heart(points))

    draft.everywhere("lungs", "lung", lungs)
    draft.add("heart", "heart", chest_soft, heart_centre, (70, 0.65 * depth, 54))


def add_spine(draft: Draft, depth: float) -> None:
    """Vertebrae and discs, the canal, arches with their processes, psoas and crura."""
    rng = draft.rng
    centre_y = -depth + 21
    back_y = 5 - depth - draft.habitus.wall - 0.5 * draft.habitus.fat
    height, phase = rng.uniform(31, 36), rng.uniform(0, 30)

    def column(points: Array) -> Array:
        return shapes.ellipsoid(points, (0, centre_y, 0), (22, 17, 4000))

    def vertebrae(points: Array) -> Array:
        along = np.abs((points[2] + np.float32(phase)) % np.float32(height) - np.float32(height / 2))
        return np.asarray(np.maximum(column(points), along - np.float32(height / 2 - 4)), np.float32)

    def marrow(points: Array) -> Array:
        return vertebrae(points) + 3

    def canal(points: Array) -> Array:
        return shapes.ellipsoid(points, (0, centre_y - 25, 0), (10, 8.5, 4000))

    def arch(points: Array) -> Array:
        ring = np.maximum(canal(points) - 5, -canal(points))
        along = np.abs((points[2] + np.float32(phase)) % np.float32(height) - np.float32(height / 2)) - 11
        wings = shapes.ellipsoid(points, (0, centre_y - 24, 0), (32, 4, 4000))
        reach = (centre_y - 30 - back_y) / 2
        spinous = shapes.ellipsoid(points, (0, back_y + reach, 0), (4, reach, 4000))
        return np.asarray(
            np.maximum(np.minimum(np.minimum(ring, wings), spinous), np.maximum(along, -canal(points))), np.float32
        )

    middle, reach = (0, centre_y - 20, 0), (46, 60, 260)
    for side in (1, -1):
        psoas = np.array([side * 42.0, -depth + 30, -190.0])
        radii = np.array([21.0, 23.0, 150.0])
        draft.add("psoas", "muscle", blob(psoas, radii), psoas, radii + 3)
        crus = np.array([side * 17.0, -depth + 45, 10.0])
        draft.add("crus", "muscle", blob(crus, np.array([7.0, 13.0, 70.0])), crus, (10, 16, 73))
    draft.add("disc", "disc", column, middle, reach)
    draft.add("vertebrae", "bone", vertebrae, middle, reach)
    draft.add("marrow", "marrow", marrow, middle, reach)
    draft.add("canal", "fluid", canal, middle, reach)
    draft.add("arch", "bone", arch, middle, reach)


def add_ribs(draft: Draft, width: float, depth: float) -> None:
    """Ribs that slope downwards in the wall, their cartilage and the sternum."""
    rng = draft.rng
    phase = rng.uniform(0, 24)
    angles = np.deg2rad(np.linspace(-78, 62, 9))
    for level in range(-3, 10):
        for side in (1, -1):
            last = 9 if level > -1 else (6 if level == -1 else 4)
            path = [
                np.array([*_on_section(side, a, width, depth), level * 25 + phase - 42 * (np.sin(a) + 1)])
                for a in angles[:last]
            ]
            _add_rib(draft, path)
            if level > 1:
                sternum = np.array([side * 12.0, depth + 1, max(path[-1][2] + 10, 78.0)])
                reach = np.abs(sternum - path[-1]) / 2 + 8
                draft.add("cartilage", "disc", bar(path[-1], sternum, 5.0), (sternum + path[-1]) / 2, reach)
    breastbone = np.array([0.0, depth + 3, 150.0])
    draft.add("sternum", "marrow", blob(breastbone, np.array([18.0, 6.5, 85.0])), breastbone, (20, 9, 88))


def _on_section(side: int, angle: float, width: float, depth: float) -> tuple[float, float]:
    """The point of the trunk's superellipse seen at an angle."""
    c, s = abs(np.cos(angle)), abs(np.sin(angle))
    radius = ((c / width) ** SECTION_POWER + (s / depth) ** SECTION_POWER) ** (-1 / SECTION_POWER)
    return side * radius * float(np.cos(angle)), radius * float(np.sin(angle))


def _add_rib(draft: Draft, path: list[Point]) -> None:
    for start, end in pairwise(path):
        middle, reach = (start + end) / 2, np.abs(end - start) / 2 + 8
        draft.add("rib", "bone", bar(start, end, 5.2), middle, reach)
    for start, end in pairwise(path):
        middle, reach = (start + end) / 2, np.abs(end - start) / 2 + 8
        draft.add("rib_marrow", "marrow", bar(start, end, 2.4), middle, reach)
