"""Displacement fields as files that ANTs, SimpleITK and 3D Slicer apply unchanged.

On disk ITK's convention holds: LPS millimetres, one vector a voxel, point y = x + u(x) resamples the moving image.
`.nii.gz` is a 5-D NIfTI with the vector intent 1007; `.h5` is an ITK transform file. The continuation outside the grid,
which ITK does not know, rides along where ITK does not look.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import file_order, read_voxels, write_image
from hepalign.image.nifti_header import NiftiHeader
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import RAS_LPS, to_lps

_VECTOR_INTENT = 1007
_COMMENT = 6
_LINEAR_KEY = "hepalign_linear_ras"
_LINEAR_NOTE = b'{"' + _LINEAR_KEY.encode()
_FLIP = np.array([-1.0, -1.0, 1.0], dtype=np.float32)


def write_field(field: DisplacementField, path: Path | str) -> None:
    """Write a field; the ending (`.nii.gz`, `.nii` or `.h5`) chooses the form.

    Raises:
        UsageError: `bad_file_name` for another ending.
    """
    path = Path(path)
    if path.suffix == ".h5":
        _write_h5(field, path)
    else:
        _write_nifti(field, path)


def read_field(path: Path | str, geometry: Geometry | None = None) -> DisplacementField:
    """Read a field written here, by ANTs, by SimpleITK or by Slicer; ANTs' composite `.h5` and linear `.mat` as well.

    Args:
        path: 5-D NIfTI (intent 1007, or ITK's 1006), or any ITK transform file.
        geometry: the grid for a transform without one of its own (linear maps).

    Raises:
        UsageError: `no_such_file`; `grid_needed` for a linear transform and no geometry.
        BadInputError: those of `read_nifti`; `not_a_field`, `bad_transform`, `nonfinite_voxels`.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path.name}: there is no such file", code="no_such_file")
    if path.suffix in (".h5", ".hdf5", ".mat", ".tfm", ".txt", ".xfm"):
        return _read_transform(path, geometry)
    return _read_nifti(path)


def _write_nifti(field: DisplacementField, path: Path) -> None:
    vectors = file_order(field.vectors)
    np.multiply(vectors, _FLIP, out=vectors)
    image = nib.Nifti1Image(vectors[:, :, :, None, :], field.geometry.affine)
    image.header.set_intent("vector")
    if not np.array_equal(field.linear, np.eye(4)):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, _note(field.linear)))
    # the last digits of a displacement are noise: packing saves a tenth of the bytes and takes three times as long
    write_image(image, field.geometry, path, pack=False)


def _note(linear: NDArray[np.float64]) -> bytes:
    return json.dumps({_LINEAR_KEY: linear.tolist()}).encode()


def _read_nifti(path: Path) -> DisplacementField:
    header, voxels, between = read_voxels(path)
    if len(header.dims) != 5:
        raise BadInputError(f"{path.name}: an image, not a displacement field (intent 1007, 5-D)", code="not_a_field")
    vectors = np.ascontiguousarray(voxels[:, :, :, 0, :], dtype=np.float32)
    # ITK reads intent 1006 (DISPVECT) as RAS and 1007 (VECTOR) as LPS.
    if header.intent == _VECTOR_INTENT:
        vectors *= _FLIP
    return DisplacementField(vectors, Geometry(header.shape, header.affine), _noted_linear(between, header, path.name))


def _noted_linear(extensions: bytes, header: NiftiHeader, name: str) -> NDArray[np.float64]:
    """The linear part from the header's extensions: 4 flag bytes, then (size, code, content) blocks."""
    layout = struct.Struct("<2i" if header.dtype.newbyteorder("=") == header.dtype else ">2i")
    position = 4
    while position + layout.size <= len(extensions):
        size, code = layout.unpack_from(extensions, position)
        content = extensions[position + layout.size : position + size].rstrip(b"\0")
        if code == _COMMENT and content.startswith(_LINEAR_NOTE):
            return _checked_linear(content, name)
        position += max(size, layout.size)
    return np.eye(4)


def _checked_linear(values: bytes, name: str) -> NDArray[np.float64]:
    try:
        matrix = np.array(json.loads(values)[_LINEAR_KEY], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{name}: its linear part cannot be read", code="bad_transform") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise BadInputError(f"{name}: its linear part is no invertible 4 x 4 matrix", code="bad_transform")
    return matrix


def _write_h5(field: DisplacementField, path: Path) -> None:
    vectors = np.ascontiguousarray((field.vectors * _FLIP).transpose(2, 1, 0, 3), dtype=np.float64)
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
            file[_LINEAR_KEY] = np.frombuffer(_note(field.linear), np.uint8)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_transform(path: Path, geometry: Geometry | None) -> DisplacementField:
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
    vectors = np.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)) * _FLIP
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
            values = file[_LINEAR_KEY][()].tobytes() if _LINEAR_KEY in file else None
    except (KeyError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path.name}: damaged; write it again", code="bad_transform") from error
    return otherwise if values is None else _checked_linear(values, path.name)
