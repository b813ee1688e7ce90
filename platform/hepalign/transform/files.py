"""Displacement fields as files that ANTs, SimpleITK and 3D Slicer apply unchanged.

On disk ITK's convention holds: LPS millimetres, one vector a voxel, point y = x + u(x) resamples the moving image.
`.nii.gz` is a 5-D NIfTI with the vector intent 1007; `.h5` is an ITK transform file. The continuation outside the grid,
which ITK does not know, rides along where ITK does not look.
"""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti import file_order, read_voxels, write_image
from hepalign.image.nifti_header import NiftiHeader
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import RAS_LPS_VECTOR
from hepalign.transform.linear_note import BEGINNING, linear_of, note_of

_VECTOR_INTENT = 1007
_COMMENT = 6


def write_field(field: DisplacementField, path: Path | str) -> None:
    """Write a field; the ending (`.nii.gz`, `.nii` or `.h5`) chooses the form.

    Raises:
        UsageError: `bad_file_name` for another ending.
    """
    path = Path(path)
    if path.suffix == ".h5":
        # SimpleITK and h5py take a fifth of a second to load, and few ask for them
        from hepalign.transform.itk_file import write_h5

        write_h5(field, path)
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
        from hepalign.transform.itk_file import read_transform

        return read_transform(path, geometry)
    return _read_nifti(path)


def _write_nifti(field: DisplacementField, path: Path) -> None:
    vectors = file_order(field.vectors)
    np.multiply(vectors, RAS_LPS_VECTOR, out=vectors)
    image = nib.Nifti1Image(vectors[:, :, :, None, :], field.geometry.affine)
    image.header.set_intent("vector")
    if not np.array_equal(field.linear, np.eye(4)):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, note_of(field.linear)))
    # the last digits of a displacement are noise: packing saves a tenth of the bytes and takes three times as long
    write_image(image, field.geometry, path, pack=False)


def _read_nifti(path: Path) -> DisplacementField:
    header, voxels, between = read_voxels(path)
    if len(header.dims) != 5:
        raise BadInputError(f"{path.name}: an image, not a displacement field (intent 1007, 5-D)", code="not_a_field")
    vectors = np.ascontiguousarray(voxels[:, :, :, 0, :], dtype=np.float32)
    # ITK reads intent 1006 (DISPVECT) as RAS and 1007 (VECTOR) as LPS.
    if header.intent == _VECTOR_INTENT:
        vectors *= RAS_LPS_VECTOR
    return DisplacementField(vectors, Geometry(header.shape, header.affine), _noted_linear(between, header, path.name))


def _noted_linear(extensions: bytes, header: NiftiHeader, name: str) -> NDArray[np.float64]:
    """The linear part from the header's extensions: 4 flag bytes, then (size, code, content) blocks."""
    layout = struct.Struct("<2i" if header.dtype.newbyteorder("=") == header.dtype else ">2i")
    position = 4
    while position + layout.size <= len(extensions):
        size, code = layout.unpack_from(extensions, position)
        content = extensions[position + layout.size : position + size].rstrip(b"\0")
        if code == _COMMENT and content.startswith(BEGINNING):
            return linear_of(content, name)
        position += max(size, layout.size)
    return np.eye(4)
