"""Displacement fields as ITK's transform files, by SimpleITK; `transform.files` chooses."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import RAS_LPS, RAS_LPS_VECTOR, to_lps
from hepalign.transform.linear_note import KEY, linear_of, note_of


def write_h5(field: DisplacementField, path: Path) -> None:
    """Write a field as an ITK transform."""
    vectors = np.ascontiguousarray((field.vectors * RAS_LPS_VECTOR).transpose(2, 1, 0, 3), dtype=np.float64)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    lps = RAS_LPS @ field.geometry.affine
    spacing = field.geometry.spacing_mm
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.asarray(spacing)).ravel().tolist())
    # ITK chooses the format by the ending, so the partial file keeps it.
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        sitk.WriteTransform(sitk.DisplacementFieldTransform(image), str(partial))
        with h5py.File(partial, "r+") as file:
            file[KEY] = np.frombuffer(note_of(field.linear), np.uint8)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_transform(path: Path, geometry: Geometry | None) -> DisplacementField:
    """Read any ITK transform file as a field; see `transform.files.read_field`."""
    try:
        transform = sitk.ReadTransform(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        # SimpleITK's messages quote the file's bytes
        raise BadInputError(f"{path.name}: no ITK transform can be read from it", code="bad_transform") from error
    if transform.GetDimension() != 3:
        raise BadInputError(f"{path.name}: a transform of {transform.GetDimension()}D space", code="bad_transform")
    parts = _flatten(transform)
    linear = np.eye(4)
    for part in parts:
        linear = linear @ _matrix(part)
    grid = geometry or _grid_of(parts, path.name)
    lps = RAS_LPS @ grid.affine
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.shape, lps[:3, 3].tolist(), grid.spacing_mm,
        (lps[:3, :3] / np.asarray(grid.spacing_mm)).ravel().tolist(),
    )  # fmt: skip
    vectors = np.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)) * RAS_LPS_VECTOR
    if not np.isfinite(vectors).all():
        raise BadInputError(f"{path.name}: displacements that are NaN or infinite", code="nonfinite_voxels")
    return DisplacementField(vectors, grid, _stored_linear(path, to_lps(linear)))


def _flatten(transform: sitk.Transform) -> list[sitk.Transform]:
    """The parts of a transform, nested composites opened, outermost first: ITK applies the last one first."""
    transform = transform.Downcast()
    if not isinstance(transform, sitk.CompositeTransform):
        return [transform]
    nth = (transform.GetNthTransform(n) for n in range(transform.GetNumberOfTransforms()))
    return [part for child in nth for part in _flatten(child)]


def _matrix(part: sitk.Transform) -> NDArray[np.float64]:
    """A part's 4 x 4 in LPS; the identity for what is not linear."""
    matrix = np.eye(4)
    if part.IsLinear():
        origin = np.asarray(part.TransformPoint((0.0, 0.0, 0.0)))
        matrix[:3, :3] = np.stack([np.asarray(part.TransformPoint(e)) - origin for e in np.eye(3).tolist()], axis=1)
        matrix[:3, 3] = origin
    return matrix


def _grid_of(parts: list[sitk.Transform], name: str) -> Geometry:
    for part in reversed(parts):
        if isinstance(part, sitk.DisplacementFieldTransform):
            image = part.GetDisplacementField()
            direction = np.asarray(image.GetDirection()).reshape(3, 3)
            affine = np.eye(4)
            affine[:3, :3] = direction * np.asarray(image.GetSpacing())
            affine[:3, 3] = image.GetOrigin()
            return Geometry(image.GetSize(), RAS_LPS @ affine)
    raise UsageError(f"{name}: a linear transform has no grid; say on which to write it", code="grid_needed")


def _stored_linear(path: Path, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    if not h5py.is_hdf5(path):
        return otherwise
    try:
        with h5py.File(path, "r") as file:
            values = file[KEY][()].tobytes() if KEY in file else None
    except (KeyError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path.name}: damaged; write it again", code="bad_transform") from error
    return otherwise if values is None else linear_of(values, path.name)
