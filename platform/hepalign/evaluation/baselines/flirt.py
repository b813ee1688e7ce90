"""FSL's own `flirt`, where the program is on the PATH."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from shutil import which

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import WorkFailedError
from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.transform.displacement import DisplacementField

DEGREES_OF_FREEDOM = 6


def flirt(problem: Problem) -> DisplacementField:
    """Rigid by the correlation ratio, defaults, with the valid mask as -refweight.

    Raises:
        WorkFailedError: `baseline_failed`, with the program's last line.
    """
    program = which("flirt")
    assert program is not None, "Baseline.missing() was asked first"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_nifti(problem.moving, folder / "moving.nii.gz")
        write_nifti(problem.fixed, folder / "fixed.nii.gz")
        write_nifti(problem.fixed.with_data(problem.valid.astype(np.float32)), folder / "valid.nii.gz")
        call = [program, "-in", "moving.nii.gz", "-ref", "fixed.nii.gz", "-refweight", "valid.nii.gz"]
        call += ["-dof", str(DEGREES_OF_FREEDOM), "-cost", "corratio", "-omat", "found.mat"]
        environment = {**os.environ, "FSLOUTPUTTYPE": "NIFTI_GZ", "OMP_NUM_THREADS": str(problem.threads)}
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - fixed words
        if done.returncode or not (folder / "found.mat").exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise WorkFailedError(f"flirt ended with status {done.returncode}: {last}", code="baseline_failed")
        matrix = np.loadtxt(folder / "found.mat")
    world = world_from_flirt(matrix, moving=problem.moving.geometry, fixed=problem.fixed.geometry)
    return DisplacementField.from_linear(world, problem.fixed.geometry)


def world_from_flirt(matrix: NDArray[np.float64], *, moving: Geometry, fixed: Geometry) -> NDArray[np.float64]:
    """The fixed-to-moving world map of a FLIRT matrix, which maps moving to fixed in FSL's scaled voxels."""
    fixed_to_moving = np.linalg.inv(matrix)
    world: NDArray[np.float64] = (
        moving.affine @ np.linalg.inv(_scaled(moving)) @ fixed_to_moving @ _scaled(fixed) @ np.linalg.inv(fixed.affine)
    )
    return world


def _scaled(geometry: Geometry) -> NDArray[np.float64]:
    """Voxel index to FSL's millimetres: the first axis runs backwards where the grid is right-handed."""
    scaled = np.diag([*geometry.spacing_mm, 1.0])
    if np.linalg.det(geometry.affine[:3, :3]) > 0:
        scaled[0, 0] *= -1
        scaled[0, 3] = (geometry.shape[0] - 1) * geometry.spacing_mm[0]
    return scaled
