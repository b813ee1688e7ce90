"""The liver: its lobes, its two kinds of vessels, its tumours."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from hepalign.cases.phantom import shapes
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.draft import Array, Distance, Draft, Point, Trunk, bar, blob
from hepalign.cases.phantom.lattice import Lattice
from hepalign.cases.phantom.vessels import Tree, grow

# Fat between liver and wall; with what the sliding wall lies further out, no liver voxel of 3 mm touches it.
WALL_GAP_MM = 4.0
LIVER_LOW_MM, LIVER_HIGH_MM = np.array([-115.0, -125.0, -150.0]), np.array([160.0, 135.0, 100.0])


def draw_liver(rng: np.random.Generator, trunk: Trunk) -> Distance:
    """A liver of a drawn volume: lobes grown together, cut by its neighbours, the wall and the diaphragm."""
    target_ml = rng.normal(1580, 190)
    lobes = _draw_lobes(rng, trunk.width, trunk.depth)
    size = 1.0
    for _ in range(4):
        liver = _liver_of_size(lobes, size, trunk)
        size *= float(np.clip((target_ml / _volume_ml(liver)) ** 0.45, 0.8, 1.25))
    return _liver_of_size(lobes, size, trunk)


def _draw_lobes(rng: np.random.Generator, width: float, depth: float) -> list[tuple[Point, Point, float]]:
    """Centre, radii and blend (mm) of each lobe."""
    stretch = rng.uniform(0.9, 1.1, (4, 3))
    left_reach = rng.uniform(0.75, 1.2)
    tip = rng.uniform(-95, -55)
    return [
        (np.array([0.5 * width, -0.08 * depth, 6.0]), np.array([0.54 * width, 0.9 * depth, 76.0]) * stretch[0], 1.0),
        (np.array([0.58 * width, 0.0, tip + 30]), np.array([0.4 * width, 0.62 * depth, 55.0]) * stretch[1], 14.0),
        (
            np.array([0.02 * width, 0.42 * depth, 26.0]),
            np.array([0.52 * width * left_reach, 0.46 * depth, 38.0]) * stretch[2],
            12.0,
        ),
        (np.array([18.0, -0.12 * depth, 18.0]), np.array([22.0, 20.0, 32.0]) * stretch[3], 8.0),
    ]


def _liver_of_size(lobes: list[tuple[Point, Point, float]], size: float, trunk: Trunk) -> Distance:
    width, depth = trunk.width, trunk.depth
    kidney_dent = (np.array([0.47 * width, -0.78 * depth, -62.0]), np.array([34.0, 36.0, 52.0]))
    hilum = (np.array([0.08 * width, 0.0, -44.0]), np.array([33.0, 28.0, 34.0]))

    def distance(points: Array) -> Array:
        solid = shapes.ellipsoid(points, lobes[0][0], lobes[0][1] * size)
        for centre, radii, blend_mm in lobes[1:]:
            solid = shapes.smooth_union(solid, shapes.ellipsoid(points, centre, radii * size), blend_mm)
        solid = shapes.smooth_difference(solid, shapes.ellipsoid(points, *kidney_dent), 10.0)
        solid = shapes.smooth_difference(solid, shapes.ellipsoid(points, *hilum), 14.0)
        solid = shapes.smooth_intersection(solid, trunk.cavity(points) + WALL_GAP_MM, 5.0)
        return shapes.smooth_intersection(solid, trunk.diaphragm(points) + 2, 5.0)

    return distance


def _volume_ml(shape: Distance, step_mm: float = 7.0) -> float:
    nodes = Lattice.nodes(LIVER_LOW_MM, LIVER_HIGH_MM, step_mm)
    return float((shape(nodes) < 0).sum()) * step_mm**3 / 1000


def add_vessels(draft: Draft, liver: Distance, depth: float) -> dict[str, Tree]:
    """Aorta and vena cava, the portal tree from the hilum, three hepatic veins to the cava; the trees by name."""
    rng = draft.rng
    aorta = [np.array([-14.0, -depth + 51, -250]), np.array([-14.0, -depth + 50, 0]), np.array([-16, -depth + 44, 250])]
    cava = [
        np.array([20.0, -depth + 52, -250]),
        np.array([22.0, -depth + 53, -20]),
        np.array([24.0, -0.3 * depth, 40]),
        np.array([14.0, -0.05 * depth, 80]),
    ]
    for start, end in pairwise(aorta):
        draft.add("aorta", "artery", bar(start, end, 11.0), (start + end) / 2, np.abs(end - start) / 2 + 13)
    for start, end in pairwise(cava):
        draft.add("cava", "vein", bar(start, end, 12.0), (start + end) / 2, np.abs(end - start) / 2 + 14)
    hilum = np.array([26.0, 0.0, -8.0])
    stem = [np.array([2.0, -0.1 * depth, -52.0]), np.array([14.0, -0.05 * depth, -28]), hilum]
    trees = {"portal": grow(rng, liver, stem, rng.uniform(6.2, 7.4))}
    confluence = np.array([24.0, -0.22 * depth, 46.0])
    for name, first_end in (
        ("right", (70.0, -14.0, 26.0)),
        ("middle", (34.0, 0.2 * depth, 30.0)),
        ("left", (0.0, 0.25 * depth, 36.0)),
    ):
        first = np.asarray(first_end) + rng.normal(0, 4, 3)
        trees[f"hepatic_{name}"] = grow(rng, liver, [confluence, first], rng.uniform(4.2, 5.2))
    for name, tree in trees.items():
        tissue = "portal_vein" if name == "portal" else "hepatic_vein"
        for b in tree.branches:
            middle, reach = (b.start + b.end) / 2, np.abs(b.end - b.start) / 2 + b.start_radius_mm + 2
            draft.add(name, tissue, bar(b.start, b.end, b.start_radius_mm, b.end_radius_mm), middle, reach)
    return trees


def add_tumours(
    draft: Draft, liver: Distance, config: PhantomConfig
) -> tuple[tuple[Distance, ...], tuple[Point, ...], tuple[float, ...]]:
    """Tumours deep enough in the liver and apart from each other: their shapes, centres and radii."""
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
        shape = blob(centre, axes, tilt)
        draft.add(f"tumour_{len(centres) + 1}", "tumour", shape, centre, np.full(3, radius * 1.3 + 3))
        shapes_found.append(shape)
        centres.append(centre)
        radii.append(radius)
    return tuple(shapes_found), tuple(centres), tuple(radii)


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
