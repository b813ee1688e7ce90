"""ANTs through antspyx: the paper's own peer, rigid and SyN."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ants
import numpy as np
import SimpleITK as sitk

from hepalign.evaluation.baselines.itk_images import LPS, field_from_itk, lps_frame
from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField


def ants_rigid(problem: Problem) -> DisplacementField:
    """Rigid by Mattes MI, antspyx's defaults."""
    return _ants(problem, "Rigid")


def ants_syn(problem: Problem) -> DisplacementField:
    """Affine and SyN by Mattes MI, antspyx's defaults."""
    return _ants(problem, "SyN")


def ants_affine(problem: Problem) -> DisplacementField:
    """Affine by Mattes MI: the start of peers that have no linear stage of their own."""
    return _ants(problem, "Affine")


def _ants(problem: Problem, transform: str) -> DisplacementField:
    fixed = _image(problem.fixed)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed=fixed,
            moving=_image(problem.moving),
            type_of_transform=transform,
            initial_transform="Identity",
            mask=_image(problem.fixed.with_data(problem.valid.astype(np.float32))),
            mask_all_stages=True,
            random_seed=problem.seed + 1,
            outprefix=f"{folder}/found_",
        )
        composed = ants.apply_transforms(
            fixed=fixed, moving=fixed, transformlist=found["fwdtransforms"], compose=f"{folder}/composed_"
        )
        field = field_from_itk(sitk.GetArrayFromImage(sitk.ReadImage(str(composed))), problem.fixed.geometry)
        linear = next((name for name in found["fwdtransforms"] if Path(name).suffix == ".mat"), None)
        matrix = np.eye(4) if linear is None else _matrix(linear)
    return DisplacementField(field.vectors, field.geometry, matrix)


def _image(volume: Volume) -> ants.ANTsImage:
    origin, spacing, direction = lps_frame(volume.geometry)
    return ants.from_numpy(volume.as_float(), origin=origin, spacing=spacing, direction=direction)


def _matrix(path: str) -> np.ndarray:
    transform = sitk.AffineTransform(sitk.ReadTransform(path))
    centre = np.array(transform.GetCenter())
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = LPS[:, None] * linear * LPS
    matrix[:3, 3] = LPS * (centre + np.array(transform.GetTranslation()) - linear @ centre)
    return matrix
