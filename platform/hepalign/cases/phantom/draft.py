"""How an anatomy is put together: organs as signed distances, in the order they are painted.

Frame: millimetres, x to the patient's right, y anterior, z superior (RAS); the origin lies in the body's axis at the
height of the liver's middle. Shapes are superposed: later organs lie over earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hepalign.cases.phantom import shapes

Array = NDArray[np.float32]
Point = NDArray[np.float64]
Distance = Callable[[Array], Array]

LOW_MM, HIGH_MM = np.array([-230.0, -190.0, -210.0]), np.array([230.0, 190.0, 210.0])


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


@dataclass(frozen=True, eq=False)
class Trunk:
    """The hollow the organs lie in.

    Args:
        width, depth: half measures of the cavity's section, mm.
        cavity: signed distance of the wall the organs slide along.
        diaphragm: signed height above the diaphragm (positive in the lungs).
    """

    width: float
    depth: float
    cavity: Distance
    diaphragm: Distance


class Draft:
    """Collects organs while an anatomy is drawn."""

    def __init__(self, rng: np.random.Generator, habitus: Habitus) -> None:
        self.rng = rng
        self.habitus = habitus
        self.organs: list[Organ] = []

    def add(self, name: str, tissue: str, distance: Distance, centre: ArrayLike, reach: ArrayLike) -> None:
        """Lays an organ over those before it; it lies within `reach` of `centre`, per axis."""
        c, r = np.asarray(centre, dtype=np.float64), np.asarray(reach, dtype=np.float64)
        self.organs.append(Organ(name, tissue, distance, c - r, c + r))

    def everywhere(self, name: str, tissue: str, distance: Distance) -> None:
        """Lays an organ that may lie anywhere."""
        self.organs.append(Organ(name, tissue, distance, LOW_MM, HIGH_MM))


def blob(centre: Point, radii: Point, rotation: NDArray[np.float64] | None = None) -> Distance:
    """An ellipsoid as a distance function."""
    return lambda points: shapes.ellipsoid(points, centre, radii, rotation)


def bar(start: Point, end: Point, start_radius: float, end_radius: float | None = None) -> Distance:
    """A straight bar, or a cone where the radii differ, as a distance function."""

    def distance(points: Array) -> Array:
        return shapes.cone(points, start, end, start_radius, start_radius if end_radius is None else end_radius)

    return distance
