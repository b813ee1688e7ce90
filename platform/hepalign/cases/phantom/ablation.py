"""What an ablation leaves: a zone that takes no contrast, with gas bubbles in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom.draft import Organ, Point, blob
from hepalign.cases.phantom.lattice import smooth_noise
from hepalign.cases.phantom.tissues import CT_HU

Array = NDArray[np.float32]


def draw_ablation(rng: np.random.Generator, centre: Point, radius_mm: float) -> list[Organ]:
    """The zone over a tumour, then its bubbles, anatomy millimetres."""
    radii = (radius_mm + rng.uniform(4, 8)) * rng.uniform(0.9, 1.25, 3)
    zone = [_ellipsoid_organ("ablation", "ablation", centre, radii)]
    bubbles = [
        _ellipsoid_organ("bubble", "gas", centre + rng.normal(0, 0.35, 3) * radii, np.full(3, rng.uniform(1.2, 3.2)))
        for _ in range(int(rng.integers(3, 12)))
    ]
    return zone + bubbles


def _ellipsoid_organ(name: str, tissue: str, centre: Point, radii: Point) -> Organ:
    return Organ(name, tissue, blob(centre, radii), centre - radii - 2, centre + radii + 2)


def burn(
    rng: np.random.Generator,
    hu: Array,
    points: Array,
    liver: NDArray[np.bool_],
    ablation: list[Organ],
    spacing_mm: float,
) -> tuple[Array, NDArray[np.bool_]]:
    """An ablation laid over a real CT.

    Args:
        rng: draws how much darker than the liver the zone is.
        hu: (D, H, W).
        points: anatomy millimetres of the voxels, (3, D, H, W).
        liver: where tissue can burn, (D, H, W).
        ablation: zone, then bubbles.
        spacing_mm: over which a border blends.

    Returns:
        HU and the zone's voxels.
    """
    burnt = hu.copy()
    distance = np.full(hu.shape, np.inf, np.float32)
    liver_hu = float(np.median(hu[liver])) if liver.any() else 0.0
    zone_hu = min(float(CT_HU["ablation"][0]), liver_hu - rng.uniform(12, 35))
    texture = 6 * smooth_noise(rng, 1, hu.shape, 6 / spacing_mm)[0]
    for organ in ablation:
        near = np.all([(points[a] > organ.low[a]) & (points[a] < organ.high[a]) for a in range(3)], axis=0) & liver
        away = organ.distance(points[:, near])
        share = np.clip(np.float32(0.5) - away / np.float32(spacing_mm), 0, 1)
        target = zone_hu + texture[near] if organ.tissue == "ablation" else np.float32(CT_HU["gas"][0])
        burnt[near] += share * (target - burnt[near])
        if organ.tissue == "ablation":
            distance[near] = away
    return burnt, distance < 0
