"""Greedy (Yushkevich et al., picsl-greedy): rigid, affine, then its greedy diffeomorphic registration."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from picsl_greedy import Greedy3D

from hepalign.evaluation.baselines.itk_images import field_from_itk, to_itk
from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.geometry import Geometry
from hepalign.transform.displacement import DisplacementField

ITERATIONS = (100, 40)
FULL_RESOLUTION_ITERATIONS = 20
SMOOTHING = "-s 3vox 1vox"
# The local correlation's window reaches this far: 4 voxels at 2.2 mm, and 2 at 3.7 mm, where 4 were worse.
WINDOW_RADIUS_MM = 9.0
# On less than this many voxels across, greedy's coarsest level has no structure left and throws the affine far off.
SMALLEST_LEVEL_VOXELS = 12
# Up to this spacing half resolution is fine enough (100x40x0); a coarser image is iterated at full resolution too.
FINE_SPACING_MM = 3.0
# On small grids the affine's NMI may be driven up by mapping the body onto nothing; one patient's body does not
# stretch like this between two scans, and the rigid map is kept instead.
LARGEST_STRETCH = 1.3


def greedy_nmi(problem: Problem) -> DisplacementField:
    """Deformable stage by normalised mutual information."""
    return _greedy(problem, "NMI")


def greedy_wncc(problem: Problem) -> DisplacementField:
    """Deformable stage by weighted local cross-correlation."""
    radii = (min(4, max(2, round(WINDOW_RADIUS_MM / s))) for s in problem.fixed.geometry.spacing_mm)
    return _greedy(problem, f"WNCC {'x'.join(map(str, radii))}")


def _greedy(problem: Problem, metric: str) -> DisplacementField:
    field = _registered(problem, metric)
    # with several threads the same command now and then ends without a finite field: then it gets a second try
    return field if np.isfinite(field.vectors).all() else _registered(problem, metric)


def _registered(problem: Problem, metric: str) -> DisplacementField:
    tool = Greedy3D()
    images = {
        "fixed": to_itk(problem.fixed),
        "moving": to_itk(problem.moving),
        "valid": to_itk(problem.fixed.with_data(problem.valid)),
    }
    common = f"-d 3 -V 0 -seed {problem.seed + 1} -threads {problem.threads} -i fixed moving -gm valid"
    common += f" -n {_iterations(problem.fixed.geometry)}"
    _run(tool, f"{common} -m NMI -a -dof 6 -ia-identity -o rigid", rigid=None, **images)
    _run(tool, f"{common} -m NMI -a -dof 12 -ia rigid -o affine", affine=None)
    linear = "affine" if _plausible(np.asarray(tool["affine"], np.float64)) else "rigid"
    _run(tool, f"{common} -m {metric} -it {linear} {SMOOTHING} -o warp", warp=None)
    _run(tool, f"-d 3 -V 0 -threads {problem.threads} -rf fixed -rc composed -r warp {linear}", composed=None)
    field = field_from_itk(sitk.GetArrayFromImage(tool["composed"]), problem.fixed.geometry)
    return DisplacementField(field.vectors, field.geometry, np.asarray(tool[linear], np.float64))


def _plausible(matrix: NDArray[np.float64]) -> bool:
    stretches = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(np.isfinite(stretches).all() and stretches[0] < LARGEST_STRETCH and stretches[-1] > 1 / LARGEST_STRETCH)


def _iterations(geometry: Geometry) -> str:
    finest = 0 if max(geometry.spacing_mm) <= FINE_SPACING_MM else FULL_RESOLUTION_ITERATIONS
    levels: tuple[int, ...] = (*ITERATIONS, finest)
    if min(geometry.shape) / 2 ** (len(levels) - 1) < SMALLEST_LEVEL_VOXELS:
        levels = ITERATIONS
    return "x".join(map(str, levels))


def _run(tool: Any, command: str, **values: object) -> None:
    messages = io.StringIO()
    tool.execute(command, out=messages, err=messages, **values)
