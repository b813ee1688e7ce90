"""One person's abdomen as implicit shapes: ask at any point which organs are there.

Frame: millimetres, x to the patient's right, y anterior, z superior (RAS); the origin lies in the body's axis at the
height of the liver's middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom import shapes
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.lattice import Lattice, smooth_noise, solve_shift
from hepalign.cases.phantom.vessels import Tree, grow

Array = NDArray[np.float32]
Point = NDArray[np.float64]
Distance = Callable[[Array], Array]

LOW_MM, HIGH_MM = np.array([-230.0, -190.0, -210.0]), np.array([230.0, 190.0, 210.0])
# Exponent of the superellipse that a trunk's axial section is.
SECTION_POWER = 2.4


@dataclass(frozen=True)
class Organ:
    """A shape, the box it lies in, and what it is made of; later organs lie over earlier ones."""

    name: str
    tissue: str
    distance: Distance
    low: Point
    high: Point


@dataclass(frozen=True)
class Habitus:
    """The body's measures, mm."""

    half_width: float
    half_depth: float
    fat: float
    wall: float
    waist: float


@dataclass(frozen=True)
class Anatomy:
    """Everything a renderer and a motion model ask of a person.

    Args:
        organs: in painting order, later over earlier.
        cavity: signed distance of the inner wall along which the organs slide.
        liver, tumours: signed distances, tumours by label 1, 2, …
        body: signed distance of the skin.
        wobble: domain warp (3 channels, mm) and textures (2 channels, unit deviation) over the body.
        landmarks: names and points, (N, 3): vessel bifurcations and tumour centres.
    """

    habitus: Habitus
    organs: tuple[Organ, ...]
    body: Distance
    cavity: Distance
    liver: Distance
    tumours: tuple[Distance, ...]
    tumour_centres: tuple[Point, ...]
    tumour_radii_mm: tuple[float, ...]
    wobble: Lattice
    landmark_names: tuple[str, ...]
    landmark_points: Point
    facts: dict[str, object] = field(default_factory=dict)

    def shape_points(self, points: Array) -> Array:
        """Where the shapes are asked for anatomy points (3, ...): the domain warp that makes them irregular."""
        return points + self.wobble.read(points)[:3]

    def from_shape(self, shape_points: Array) -> Array:
        """The inverse of `shape_points`, for a few points (3, N)."""
        warp = Lattice(self.wobble.values[:3], self.wobble.origin_mm, self.wobble.step_mm)
        return solve_shift(warp, shape_points, None, 60)


class _Draft:
    """Collects organs while an anatomy is drawn."""

    def __init__(self, rng: np.random.Generator, habitus: Habitus) -> None:
        self.rng = rng
        self.habitus = habitus
        self.organs: list[Organ] = []

    def add(self, name: str, tissue: str, distance: Distance, centre: object, reach: object) -> None:
        c, r = np.asarray(centre, dtype=np.float64), np.asarray(reach, dtype=np.float64)
        self.organs.append(Organ(name, tissue, distance, c - r, c + r))

    def everywhere(self, name: str, tissue: str, distance: Distance) -> None:
        self.organs.append(Organ(name, tissue, distance, LOW_MM, HIGH_MM))


def _tube_section(half_width: float, half_depth: float, waist: float, power: float = SECTION_POWER) -> Distance:
    """A trunk: a superellipse that narrows towards the waist (z below 0), distance to first order."""

    def distance(points: Array) -> Array:
        narrowing = 1 - np.float32(waist) * np.clip(-points[2] / 120, 0, 1.2) ** 2
        radius = (np.abs(points[0] / (half_width * narrowing)) ** power + np.abs(points[1] / half_depth) ** power) ** (
            1 / power
        )
        return np.asarray((radius - 1) * np.float32(min(half_width, half_depth)), np.float32)

    return distance


def draw_habitus(rng: np.random.Generator) -> Habitus:
    """A body from slim to stout."""
    stoutness = rng.beta(2, 2.5)
    fat = 6 + 26 * stoutness + rng.uniform(-2, 2)
    return Habitus(
        half_width=128 + 8 * rng.uniform(-1, 1) + 0.85 * fat + 8,
        half_depth=88 + 6 * rng.uniform(-1, 1) + 0.8 * fat + 6,
        fat=fat,
        wall=rng.uniform(12, 16),
        waist=rng.uniform(0.0, 0.12) * (1 - stoutness),
    )


def draw_anatomy(rng: np.random.Generator, config: PhantomConfig) -> Anatomy:
    """Draws a person: habitus, organs, vessel trees, tumours."""
    habitus = draw_habitus(rng)
    draft = _Draft(rng, habitus)
    wobble = _draw_wobble(rng)
    body = _tube_section(habitus.half_width, habitus.half_depth, habitus.waist)
    wall = _tube_section(habitus.half_width - 1.1 * habitus.fat, habitus.half_depth - 0.9 * habitus.fat, habitus.waist)
    inner_width = habitus.half_width - 1.1 * habitus.fat - habitus.wall
    inner_depth = habitus.half_depth - 0.9 * habitus.fat - habitus.wall
    cavity = _draw_cavity(inner_width, inner_depth, habitus.waist)
    draft.everywhere("subcutaneous_fat", "fat", body)
    draft.everywhere("wall", "muscle", wall)
    draft.everywhere("abdominal_fat", "fat", cavity)

    dome = _draw_diaphragm(rng, inner_width, inner_depth)
    _add_lungs_and_heart(draft, cavity, dome, inner_width, inner_depth)
    _add_bowel(draft, cavity, inner_width, inner_depth)
    liver = _draw_liver(rng, cavity, dome, inner_width, inner_depth)
    _add_left_organs(draft, cavity, dome, inner_width, inner_depth)
    _add_kidneys(draft, inner_width, inner_depth)
    liver_low, liver_high = np.array([-110.0, -120, -150]), np.array([150.0, 130, 130])
    draft.organs.append(Organ("liver", "liver", liver, liver_low, liver_high))
    _add_gallbladder(draft)
    _add_spine(draft, inner_depth)
    _add_ribs(draft, inner_width + 7, inner_depth + 7)
    trees = _add_vessels(draft, liver, inner_depth)
    tumours, centres, radii = _add_tumours(draft, liver, config)
    names, landmarks = _landmarks(trees, centres)
    return Anatomy(
        habitus=habitus,
        organs=tuple(draft.organs),
        body=body,
        cavity=cavity,
        liver=liver,
        tumours=tumours,
        tumour_centres=centres,
        tumour_radii_mm=radii,
        wobble=wobble,
        landmark_names=names,
        landmark_points=landmarks,
        facts={"fat_mm": round(habitus.fat, 1), "tumours": len(tumours)},
    )


def _draw_wobble(rng: np.random.Generator) -> Lattice:
    step = 8.0
    shape = tuple(int(n) for n in np.ceil((HIGH_MM - LOW_MM) / step) + 1)
    warp = smooth_noise(rng, 3, shape, 3.0) * 3.0 + smooth_noise(rng, 3, shape, 1.2) * 1.0
    texture = np.concatenate([smooth_noise(rng, 1, shape, 2.0), smooth_noise(rng, 1, shape, 0.6)])
    return Lattice(np.concatenate([warp, texture]).astype(np.float32), LOW_MM, step)


def _draw_cavity(inner_width: float, inner_depth: float, waist: float) -> Distance:
    trunk = _tube_section(inner_width, inner_depth, waist)

    def distance(points: Array) -> Array:
        # The spine and the muscles beside it bulge into the trunk from behind.
        spine = shapes.ellipsoid(points, (0, -inner_depth + 6, 0), (44, 40, 4000))
        apex = points[2] - np.float32(205) + 90 * ((points[0] / inner_width) ** 2 + (points[1] / inner_depth) ** 2)
        return shapes.smooth_difference(np.maximum(trunk(points), apex * 0.6), spine, 10.0)

    return distance


def _draw_diaphragm(rng: np.random.Generator, width: float, depth: float) -> Distance:
    """Signed height above the diaphragm (positive in the lungs)."""
    right_height, left_height = rng.uniform(62, 78), rng.uniform(48, 62)
    right_x, left_x = width * rng.uniform(0.42, 0.5), -width * rng.uniform(0.46, 0.54)

    def height(points: Array) -> Array:
        def dome(centre_x: float, top: float) -> Array:
            across = ((points[0] - np.float32(centre_x)) / (0.62 * width)) ** 2 + (
                (points[1] - np.float32(0.08 * depth)) / (1.02 * depth)
            ) ** 2
            return np.asarray(top - 105 * across * np.float32(0.9), np.float32)

        surface = -shapes.smooth_union(-dome(right_x, right_height), -dome(left_x, left_height), 12.0)
        return np.asarray((points[2] - surface) * np.float32(0.6), np.float32)

    return height


def _add_lungs_and_heart(draft: _Draft, cavity: Distance, dome: Distance, width: float, depth: float) -> None:
    heart_centre = np.array([-22.0, 0.22 * depth, 92.0])

    def mediastinum(points: Array) -> Array:
        return shapes.ellipsoid(points, (-2, -0.1 * depth, 0), (30, 0.75 * depth, 4000))

    def heart(points: Array) -> Array:
        return shapes.ellipsoid(points, heart_centre, (62, 50, 48))

    def lungs(points: Array) -> Array:
        middle = np.minimum(mediastinum(points), heart(points) - 3)
        return np.maximum(np.maximum(cavity(points) + 1, 1.5 - dome(points)), -middle)

    def chest_soft(points: Array) -> Array:
        return np.maximum(np.maximum(cavity(points) + 2, -dome(points)), heart(points))

    draft.everywhere("lungs", "lung", lungs)
    draft.add("heart", "heart", chest_soft, heart_centre, (66, 54, 52))


def _draw_liver(rng: np.random.Generator, cavity: Distance, dome: Distance, width: float, depth: float) -> Distance:
    stretch = rng.uniform(0.9, 1.08, 3)
    left_reach = rng.uniform(0.75, 1.15)
    tip = rng.uniform(-95, -60)
    right = (np.array([0.52 * width, -0.08 * depth, 8.0]), np.array([0.52 * width, 0.86 * depth, 74.0]) * stretch)
    left = (np.array([0.0, 0.45 * depth, 26.0]), np.array([0.5 * width * left_reach, 0.44 * depth, 36.0]) * stretch)
    lower = (np.array([0.58 * width, 0.0, tip + 30]), np.array([0.36 * width, 0.6 * depth, 55.0]) * stretch)
    caudate = (np.array([18.0, -0.12 * depth, 18.0]), np.array([22.0, 20.0, 32.0]))
    kidney_dent = (np.array([0.47 * width, -0.78 * depth, -62.0]), np.array([36.0, 36.0, 52.0]))
    hilum = (np.array([0.12 * width, 0.05 * depth, -28.0]), np.array([34.0, 30.0, 34.0]))

    def distance(points: Array) -> Array:
        solid = shapes.ellipsoid(points, *right)
        solid = shapes.smooth_union(solid, shapes.ellipsoid(points, *lower), 14.0)
        solid = shapes.smooth_union(solid, shapes.ellipsoid(points, *left), 12.0)
        solid = shapes.smooth_union(solid, shapes.ellipsoid(points, *caudate), 8.0)
        solid = shapes.smooth_difference(solid, shapes.ellipsoid(points, *kidney_dent), 10.0)
        solid = shapes.smooth_difference(solid, shapes.ellipsoid(points, *hilum), 14.0)
        solid = shapes.smooth_intersection(solid, cavity(points) + 4, 5.0)
        return shapes.smooth_intersection(solid, dome(points) + 2, 5.0)

    return distance


def _add_left_organs(draft: _Draft, cavity: Distance, dome: Distance, width: float, depth: float) -> None:
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
        return np.maximum(lumen(points), np.float32(gas_level) - points[1])

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


def _add_kidneys(draft: _Draft, width: float, depth: float) -> None:
    rng = draft.rng
    for side, name, level in ((1, "right_kidney", -62.0), (-1, "left_kidney", -48.0)):
        centre = np.array([side * 0.47 * width, -0.62 * depth, level + rng.uniform(-8, 8)])
        radii = np.array([27.0, 25.0, 53.0]) * rng.uniform(0.92, 1.06)
        tilt = shapes.rotation_about((0, 1, 0), side * 0.2)
        _add_kidney(draft, name, side, centre, radii, tilt)


def _add_kidney(draft: _Draft, name: str, side: int, centre: Point, radii: Point, tilt: NDArray[np.float64]) -> None:
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


def _add_gallbladder(draft: _Draft) -> None:
    rng = draft.rng
    centre = np.array([38 + rng.uniform(-6, 6), 36 + rng.uniform(-6, 6), -48.0])
    radii = np.array([13.0, 15.0, 27.0]) * rng.uniform(0.7, 1.15)
    tilt = shapes.rotation_about((1, 0, 0), 0.5)
    draft.add("gallbladder", "bile", lambda p: shapes.ellipsoid(p, centre, radii, tilt), centre, np.full(3, 34.0))


def _add_bowel(draft: _Draft, cavity: Distance, width: float, depth: float) -> None:
    rng = draft.rng
    for loop in range(9):
        start = np.array([rng.uniform(-0.75, 0.7) * width, rng.uniform(-0.2, 0.7) * depth, rng.uniform(-150, -62)])
        path = [start]
        heading = rng.standard_normal(3) * (1, 0.7, 0.5)
        for _ in range(4):
            heading = heading + rng.standard_normal(3) * 0.8
            path.append(path[-1] + heading / np.linalg.norm(heading) * 26)
        _add_loop(draft, f"bowel_{loop}", path, rng.uniform(11, 17), cavity)


def _add_loop(draft: _Draft, name: str, path: list[Point], radius: float, cavity: Distance) -> None:
    def wall(points: Array) -> Array:
        return np.maximum(shapes.tube(points, path, radius), cavity(points) + 4)

    def lumen(points: Array) -> Array:
        return wall(points) + 3

    content = str(draft.rng.choice(["gas", "stool", "fluid"], p=[0.25, 0.4, 0.35]))
    corners = np.array(path)
    middle, reach = (corners.max(0) + corners.min(0)) / 2, (corners.max(0) - corners.min(0)) / 2 + radius + 2
    draft.add(name, "bowel_wall", wall, middle, reach)
    draft.add(f"{name}_content", content, lumen, middle, reach)


def _add_spine(draft: _Draft, depth: float) -> None:
    rng = draft.rng
    centre_y = -depth + 2
    height, phase = rng.uniform(31, 36), rng.uniform(0, 30)

    def column(points: Array) -> Array:
        return shapes.ellipsoid(points, (0, centre_y, 0), (22, 17, 4000))

    def vertebrae(points: Array) -> Array:
        along = np.abs((points[2] + np.float32(phase)) % np.float32(height) - np.float32(height / 2))
        return np.maximum(column(points), along - np.float32(height / 2 - 4))

    def marrow(points: Array) -> Array:
        return vertebrae(points) + 3

    def canal(points: Array) -> Array:
        return shapes.ellipsoid(points, (0, centre_y - 25, 0), (10, 8.5, 4000))

    def arch(points: Array) -> Array:
        ring = np.maximum(canal(points) - 5, -canal(points))
        along = np.abs((points[2] + np.float32(phase)) % np.float32(height) - np.float32(height / 2)) - 11
        wings = shapes.ellipsoid(points, (0, centre_y - 24, 0), (40, 5, 4000))
        spinous = shapes.ellipsoid(points, (0, centre_y - 44, 0), (4, 17, 4000))
        return np.maximum(np.minimum(np.minimum(ring, wings), spinous), np.maximum(along, -canal(points)))

    middle, reach = (0, centre_y - 20, 0), (46, 48, 260)
    draft.add("disc", "disc", column, middle, reach)
    draft.add("vertebrae", "bone", vertebrae, middle, reach)
    draft.add("marrow", "marrow", marrow, middle, reach)
    draft.add("canal", "fluid", canal, middle, reach)
    draft.add("arch", "bone", arch, middle, reach)


def _add_ribs(draft: _Draft, width: float, depth: float) -> None:
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


def _on_section(side: int, angle: float, width: float, depth: float) -> tuple[float, float]:
    """The point of the trunk's superellipse seen at an angle."""
    c, s = abs(np.cos(angle)), abs(np.sin(angle))
    radius = ((c / width) ** SECTION_POWER + (s / depth) ** SECTION_POWER) ** (-1 / SECTION_POWER)
    return side * radius * float(np.cos(angle)), radius * float(np.sin(angle))


def _add_rib(draft: _Draft, path: list[Point]) -> None:
    for start, end in zip(path[:-1], path[1:], strict=True):
        middle, reach = (start + end) / 2, np.abs(end - start) / 2 + 8
        draft.add("rib", "bone", _bar(start, end, 5.2), middle, reach)
    for start, end in zip(path[:-1], path[1:], strict=True):
        middle, reach = (start + end) / 2, np.abs(end - start) / 2 + 8
        draft.add("rib_marrow", "marrow", _bar(start, end, 2.4), middle, reach)


def _bar(start: Point, end: Point, start_radius: float, end_radius: float | None = None) -> Distance:
    def distance(points: Array) -> Array:
        return shapes.cone(points, start, end, start_radius, start_radius if end_radius is None else end_radius)

    return distance


def _add_vessels(draft: _Draft, liver: Distance, depth: float) -> dict[str, Tree]:
    rng = draft.rng
    aorta = [np.array([-14.0, -depth + 34, -250]), np.array([-14.0, -depth + 33, 0]), np.array([-16, -depth + 30, 250])]
    cava = [
        np.array([20.0, -depth + 40, -250]),
        np.array([22.0, -depth + 42, -20]),
        np.array([24.0, -0.3 * depth, 40]),
        np.array([14.0, -0.05 * depth, 80]),
    ]
    for start, end in zip(aorta[:-1], aorta[1:], strict=True):
        draft.add("aorta", "artery", _bar(start, end, 11.0), (start + end) / 2, np.abs(end - start) / 2 + 13)
    for start, end in zip(cava[:-1], cava[1:], strict=True):
        draft.add("cava", "vein", _bar(start, end, 12.0), (start + end) / 2, np.abs(end - start) / 2 + 14)
    hilum = np.array([26.0, 0.0, -8.0])
    stem = [np.array([2.0, -0.1 * depth, -52.0]), np.array([14.0, -0.05 * depth, -28]), hilum]
    trees = {"portal": grow(rng, liver, stem, rng.uniform(6.2, 7.4))}
    confluence = np.array([24.0, -0.22 * depth, 46.0])
    for name, end in (
        ("right", (70.0, -14.0, 26.0)),
        ("middle", (34.0, 0.2 * depth, 30.0)),
        ("left", (0.0, 0.25 * depth, 36.0)),
    ):
        first = np.asarray(end) + rng.normal(0, 4, 3)
        trees[f"hepatic_{name}"] = grow(rng, liver, [confluence, first], rng.uniform(4.2, 5.2))
    for name, tree in trees.items():
        tissue = "portal_vein" if name == "portal" else "hepatic_vein"
        for b in tree.branches:
            middle, reach = (b.start + b.end) / 2, np.abs(b.end - b.start) / 2 + b.start_radius_mm + 2
            draft.add(name, tissue, _bar(b.start, b.end, b.start_radius_mm, b.end_radius_mm), middle, reach)
    return trees


def _add_tumours(
    draft: _Draft, liver: Distance, config: PhantomConfig
) -> tuple[tuple[Distance, ...], tuple[Point, ...], tuple[float, ...]]:
    rng = draft.rng
    shapes_found: list[Distance] = []
    centres: list[Point] = []
    radii: list[float] = []
    for _ in range(int(rng.integers(config.tumours[0], config.tumours[1] + 1))):
        radius = float(rng.uniform(*config.tumour_radius_mm))
        centre = _place_tumour(rng, liver, radius, centres, radii)
        if centre is None:
            continue
        axes = radius * rng.uniform(0.85, 1.15, 3)
        tilt = shapes.rotation_about(rng.standard_normal(3), rng.uniform(0, np.pi))
        shape = _tumour(centre, axes, tilt)
        draft.add(f"tumour_{len(centres) + 1}", "tumour", shape, centre, np.full(3, radius * 1.3 + 3))
        shapes_found.append(shape)
        centres.append(centre)
        radii.append(radius)
    return tuple(shapes_found), tuple(centres), tuple(radii)


def _tumour(centre: Point, axes: Point, tilt: NDArray[np.float64]) -> Distance:
    return lambda points: shapes.ellipsoid(points, centre, axes, tilt)


def _place_tumour(
    rng: np.random.Generator, liver: Distance, radius: float, centres: list[Point], radii: list[float]
) -> Point | None:
    candidates = rng.uniform((-60, -80, -70), (120, 70, 70), (400, 3))
    depth = liver(np.ascontiguousarray(candidates.T, dtype=np.float32))
    for candidate in candidates[depth < -(radius + 4)]:
        apart = [np.linalg.norm(candidate - c) > radius + r + 6 for c, r in zip(centres, radii, strict=True)]
        if all(apart):
            found: Point = candidate
            return found
    return None


def _landmarks(trees: dict[str, Tree], centres: tuple[Point, ...]) -> tuple[tuple[str, ...], Point]:
    names: list[str] = []
    points: list[Point] = []
    for name, tree in trees.items():
        for number, point in enumerate(tree.bifurcations, start=1):
            names.append(f"{name}_bifurcation_{number}")
            points.append(point)
    for number, point in enumerate(centres, start=1):
        names.append(f"tumour_{number}_centre")
        points.append(point)
    return tuple(names), np.array(points).reshape(-1, 3)
