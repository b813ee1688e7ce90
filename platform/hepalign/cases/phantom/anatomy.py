"""One person's abdomen as implicit shapes: ask at any point which organs are there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hepalign.cases.phantom import liver as liver_parts
from hepalign.cases.phantom import organs
from hepalign.cases.phantom import trunk as parts
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.draft import HIGH_MM, LOW_MM, Array, Distance, Draft, Habitus, Organ, Point
from hepalign.cases.phantom.lattice import Lattice, smooth_noise, solve_shift
from hepalign.cases.phantom.vessels import Tree


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
        still = Lattice(np.zeros_like(warp.values), warp.origin_mm, warp.step_mm)
        return solve_shift(warp, shape_points, still, 60)


def draw_anatomy(rng: np.random.Generator, config: PhantomConfig) -> Anatomy:
    """Draws a person: habitus, organs, vessel trees, tumours."""
    habitus = parts.draw_habitus(rng)
    draft = Draft(rng, habitus)
    wobble = _draw_wobble(rng)
    body, trunk = parts.build_trunk(draft)
    parts.add_lungs_and_heart(draft, trunk)
    organs.add_bowel(draft, trunk)
    liver = liver_parts.draw_liver(rng, trunk)
    organs.add_left_organs(draft, trunk)
    organs.add_kidneys(draft, trunk.width, trunk.depth)
    draft.organs.append(Organ("liver", "liver", liver, liver_parts.LIVER_LOW_MM, liver_parts.LIVER_HIGH_MM))
    organs.add_gallbladder(draft)
    parts.add_spine(draft, trunk.depth)
    parts.add_ribs(draft, trunk.width + 7, trunk.depth + 7)
    trees = liver_parts.add_vessels(draft, liver, trunk.depth)
    tumours, centres, radii = liver_parts.add_tumours(draft, liver, config)
    names, landmarks = _landmarks(trees, centres)
    return Anatomy(
        habitus=habitus,
        organs=tuple(draft.organs),
        body=body,
        cavity=trunk.cavity,
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
