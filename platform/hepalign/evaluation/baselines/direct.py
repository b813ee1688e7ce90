"""Registration across modalities without synthesis: mutual information or MIND, the images as they are.

The question behind it (Tanner et al. 2018): does a synthetic CT help, or would a similarity made for two modalities
have done? Affine by ANTs, then a dense field by Adam under bending energy, the same for both similarities.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hepalign.evaluation.baselines.ants_engine import ants_affine
from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.losses.mutual_information import mutual_information
from hepalign.losses.regularisation import bending_energy
from hepalign.losses.similarity import mind_ssc, weighted_mean
from hepalign.transform.displacement import DisplacementField, compose, resample_field
from hepalign.transform.warp import warp, warp_tensor

LEVELS_MM = (8.0, 4.0)
ITERATIONS = 60
STEP_VOXELS = 0.1
# The field has a control point for every second voxel of a level.
CONTROL_STRIDE = 2
# Bending energy against each similarity: set once on a small known warp, not tuned further.
MI_WEIGHT, MIND_WEIGHT = 0.5, 0.05

# (warped image or features, fixed image or features, weight) -> loss
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def direct_mi(problem: Problem) -> DisplacementField:
    """Parzen mutual information over the valid voxels."""

    def loss(warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        inside = weight > 0.5
        return -mutual_information(warped[inside][None], fixed[inside][None]).sum()

    return _direct(problem, lambda image: image, loss, MI_WEIGHT)


def direct_mind(problem: Problem) -> DisplacementField:
    """Squared difference of MIND-SSC over the valid voxels."""
    return _direct(problem, mind_ssc, lambda a, b, weight: weighted_mean((a - b).square(), weight), MIND_WEIGHT)


def _direct(problem: Problem, features: Callable[[Tensor], Tensor], loss: Loss, smoothness: float) -> DisplacementField:
    torch.manual_seed(problem.seed)
    torch.set_num_threads(problem.threads)
    affine = ants_affine(problem)
    control: Tensor | None = None
    grid = problem.fixed.geometry
    for spacing_mm in LEVELS_MM:
        grid = _grid(problem.fixed.geometry, spacing_mm)
        moving, fixed, weight = _images(problem, affine, grid)
        shape = [max(4, n // CONTROL_STRIDE) for n in grid.shape]
        start = torch.zeros(1, 3, *shape) if control is None else 2 * _resized(control, shape)
        control = _optimised(start, features(moving), features(fixed), weight, loss, smoothness)
    assert control is not None
    voxels = _resized(control, list(grid.shape))[0].movedim(0, -1).numpy()
    residual_mm = np.ascontiguousarray(voxels @ grid.affine[:3, :3].T, dtype=np.float32)
    residual = resample_field(DisplacementField(residual_mm, grid), problem.fixed.geometry)
    return compose(affine, residual)


def _optimised(start: Tensor, moving: Tensor, fixed: Tensor, weight: Tensor, loss: Loss, smoothness: float) -> Tensor:
    control = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([control], lr=STEP_VOXELS)
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        voxels = _resized(control, list(fixed.shape[2:]))
        cost = loss(warp_tensor(moving, voxels), fixed, weight) + smoothness * bending_energy(control)
        cost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return control.detach()


def _images(problem: Problem, affine: DisplacementField, grid: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Moving under the affine, fixed, and the valid mask on a level's grid; [1, 1, D, H, W], images in [-1, 1]."""
    moving = warp(problem.moving, resample_field(affine, grid), fill=0.0).as_float()
    fixed = resample(problem.fixed, grid, fill=0.0).as_float()
    valid = resample(problem.fixed.with_data(problem.valid.astype(np.float32)), grid, fill=1.0).as_float()
    unit = [image / max(float(image.max()), 1e-6) * 2 - 1 for image in (moving, fixed)]
    weight = (valid > 0.99).astype(np.float32)
    tensors = [torch.from_numpy(np.ascontiguousarray(a))[None, None] for a in (*unit, weight)]
    return tensors[0], tensors[1], tensors[2]


def _grid(geometry: Geometry, spacing_mm: float) -> Geometry:
    i, j, k = (max(8, round(extent / spacing_mm)) for extent in geometry.extent_mm)
    return geometry.with_shape((i, j, k))


def _resized(field: Tensor, shape: list[int]) -> Tensor:
    return F.interpolate(field, size=shape, mode="trilinear", align_corners=False)
