"""A CT put into another pose by a known map: the truth for an MR that was aligned with it before."""

from __future__ import annotations

import numpy as np

from hepalign.cases.phantom.acquire import AIR_HU, store_hu
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.lattice import Lattice, flow, smooth_noise
from hepalign.cases.phantom.make import session
from hepalign.cases.phantom.motion import apply_linear
from hepalign.cases.phantom.needles import grid_points
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.warp import warp

STEP_MM, SMOOTH_NODES = 20.0, 2.0
MARGIN_MM = 60.0


def draw_move(geometry: Geometry, seed: int, config: PhantomConfig | None = None) -> DisplacementField:
    """A pose (the phantom's between two sessions) and a smooth bend that does not fold, on a CT's grid.

    Args:
        geometry: the CT's grid; the field lives on it.
        seed: chooses both.
        config: ranges of the pose and of the bend's mean length (`rigid_residual_mm`); the phantom's by default.

    Returns:
        u, so that `moved(x) = ct(x + u(x))`.
    """
    config = config or PhantomConfig()
    rng = np.random.default_rng(seed)
    rigid = session(rng, config, geometry.centre_mm, 1.0)
    corners = geometry.corners_mm()
    low, high = corners.min(0) - MARGIN_MM, corners.max(0) + MARGIN_MM
    nodes = Lattice.nodes(low, high, STEP_MM)
    noise = smooth_noise(rng, 3, nodes.shape[1:], SMOOTH_NODES)
    length = np.linalg.norm(noise, axis=0).mean()
    bend = flow(Lattice(noise * np.float32(rng.uniform(*config.rigid_residual_mm) / length), low, STEP_MM))
    points = grid_points(geometry)
    moved = apply_linear(rigid, points + bend.read(points)) - points
    return DisplacementField(np.ascontiguousarray(np.moveaxis(moved, 0, -1)), geometry, rigid)


def moved_ct(ct: Volume, field: DisplacementField) -> Volume:
    """The CT in its new pose, in whole HU, air beyond what was scanned."""
    return Volume(store_hu(warp(ct, field, fill=AIR_HU).as_float()), field.geometry)


def moved_mask(mask: Volume, field: DisplacementField) -> Volume:
    """A mask on any grid of the CT's frame, in the new pose on the field's grid."""
    return warp(mask.with_data(mask.as_mask().astype(np.uint8)), field, mode="nearest", fill=0)
