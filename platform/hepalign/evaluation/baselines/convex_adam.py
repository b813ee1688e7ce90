"""ConvexAdam (Siebert et al. 2024): coupled convex optimisation on MIND, then Adam; Learn2Reg's training-free peer."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.evaluation.baselines.ants_engine import ants_affine
from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.shapes import Mask3
from hepalign.transform.displacement import DisplacementField, compose, resample_field
from hepalign.transform.warp import warp

# ConvexAdam's lengths are voxels, and its cost volume grows with the grid.
SPACING_MM = 2.5
GRID_SPACING_VOXELS = 6
SEARCH_HALF_WIDTH = 4
# Each level halves the grid twice and divides it by the spacing above.
SHAPE_MULTIPLE = 12


def convex_adam(problem: Problem) -> DisplacementField:
    """ANTs' affine, then ConvexAdam with its published MIND settings on a 2.5 mm grid.

    Its own mask option fills a masked region from the nearest valid voxel; the same is done here beforehand, in
    both images, so that the hole pulls on nothing.
    """
    with warnings.catch_warnings():
        # the package switches every warning of the process off when it is imported
        from convexAdam.convex_adam_MIND import convex_adam_pt

    affine = ants_affine(problem)
    grid = _grid(problem.fixed.geometry)
    valid = resample(problem.fixed.with_data(problem.valid.astype(np.uint8)), grid, mode="nearest", fill=1).as_mask()
    fixed = _filled(resample(problem.fixed, grid, fill=0.0).as_float(), valid)
    onto = resample_field(affine, grid)
    moving = _filled(warp(problem.moving, onto, fill=0.0).as_float(), valid)
    torch.manual_seed(problem.seed)
    torch.set_num_threads(problem.threads)
    voxels = convex_adam_pt(
        img_fixed=fixed,
        img_moving=moving,
        grid_sp=GRID_SPACING_VOXELS,
        disp_hw=SEARCH_HALF_WIDTH,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    residual_mm = np.ascontiguousarray(voxels @ grid.affine[:3, :3].T, dtype=np.float32)
    return resample_field(compose(affine, DisplacementField(residual_mm, grid)), problem.fixed.geometry)


def _grid(geometry: Geometry) -> Geometry:
    """An isotropic grid over the same box, its shape a multiple of the method's strides."""
    count = [max(1, round(extent / SPACING_MM / SHAPE_MULTIPLE)) for extent in geometry.extent_mm]
    return geometry.with_shape((count[0] * SHAPE_MULTIPLE, count[1] * SHAPE_MULTIPLE, count[2] * SHAPE_MULTIPLE))


def _filled(data: NDArray[np.float32], valid: Mask3) -> NDArray[np.float32]:
    if valid.all():
        return data
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    filled: NDArray[np.float32] = data[tuple(nearest)]
    return filled
