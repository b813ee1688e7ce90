"""A probe put into a clean CT: needles, their artefact, and the coarse mask that goes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from hepalign.cases.phantom.artefact import Scan, add_artefact
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.needles import Needle, coarse_mask, damp_streaks, draw_needles, metal_share
from hepalign.image.geometry import Geometry

Array = NDArray[np.float32]
# A finer image shows finer streaks and needs more views for them.
VIEWS_PER_PIXEL = 2.5


@dataclass(frozen=True, eq=False)
class Probe:
    """What a probe adds to a scan.

    Args:
        needles: in the image's world.
        difference: HU to add to the clean image, (D, H, W).
        mask: coarse, over probe and artefact, (D, H, W) bool.
        attributes: JSON values about it.
    """

    needles: list[Needle]
    difference: Array
    mask: NDArray[np.bool_]
    attributes: dict[str, object]


def insert_probe(
    rng: np.random.Generator,
    clean_hu: Array,
    target_mm: NDArray[np.float64],
    skin: Callable[[Array], Array],
    body: NDArray[np.bool_],
    geometry: Geometry,
    config: PhantomConfig,
) -> Probe:
    """Draws needles to a target and the artefact they make.

    Args:
        rng: draws needles, metal, dose and starvation.
        clean_hu: the scan without them, (D, H, W), axial slices along the last axis.
        target_mm: where the first tip goes, world.
        skin: signed distance of the skin at world points (3, N).
        body: voxels of the patient.
        geometry: the scan's grid.
        config: how many needles.
    """
    count = int(rng.integers(config.needles[0], config.needles[1] + 1))

    def hu(points: Array) -> Array:
        index = geometry.world_to_index(points.T).T
        return np.asarray(map_coordinates(clean_hu, index, order=0, mode="constant", cval=0.0), np.float32)

    needles = draw_needles(rng, count, target_mm, skin, hu)
    scan = Scan(
        photons=float(10 ** rng.uniform(5, 6)),
        views=int(VIEWS_PER_PIXEL * max(geometry.shape[:2])),
        metal="steel" if rng.uniform() < 0.7 else "titanium",
    )
    share = metal_share(needles, geometry)
    difference = add_artefact(rng, clean_hu, share, geometry.spacing_mm[0], scan)
    difference = damp_streaks(rng, difference, needles, geometry)
    mask = coarse_mask(needles, difference, body, geometry)
    return Probe(needles, difference, mask, {"needles": count, "metal": scan.metal, "photons": round(scan.photons)})
