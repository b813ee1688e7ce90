"""The NIfTI-1 and NIfTI-2 header, read byte by byte and checked before anything else looks at the file.

nibabel and SimpleITK accept NaN affines, zero dimensions and offsets past the end; an intervention must not. Layout:
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and .../nifti2/nifti2.h.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry

Orientation = Literal["auto", "sform", "qform"]

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
# 512 x 512 x 1024 voxels, as float32 a GiB: four times any abdominal CT met, an eighth of a small server's memory.
MAX_VOXELS = 1 << 28
MAX_VOXEL_BYTES = 4 * MAX_VOXELS
MAX_EXTENSION_BYTES = 16 << 20
# DICOM converters leave sform and qform a rounding apart; a tenth of a voxel is more than that and less than a fault.
ORIENTATION_TOLERANCE_VOXELS = 0.1
# ITK refuses about here; over 250 mm it stands for a quarter of a millimetre.
MAX_SHEAR = 1e-3
SPACING_RANGE_MM = (0.05, 50.0)
MAX_EXTENT_MM = 4000.0
MAX_WORLD_MM = 20_000.0
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_VECTOR_INTENTS = (1006, 1007)
_METRE, _MICROMETRE = 1, 3


@dataclass(frozen=True)
class NiftiHeader:
    """What of a checked header is needed to place and read its voxels.

    Args:
        dims: all dimensions, trailing ones kept (a vector field has (D, H, W, 1, 3)).
        dtype: with the file's byte order.
        offset: bytes before the first voxel.
        slope, inter: `value = slope * stored + inter`; (1, 0) where the header asks for none.
        affine: voxel index to RAS mm.
        intent: the intent code.
        size: bytes of the header itself.
    """

    dims: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    inter: float
    affine: NDArray[np.float64]
    intent: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The three spatial dimensions."""
        d, h, w = self.dims[:3]
        return d, h, w

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxel block."""
        return math.prod(self.dims) * self.dtype.itemsize


def header_size(start: bytes) -> int | None:
    """348 or 540 from a file's first four bytes, None for what is no NIfTI."""
    for order in "<>":
        size = int(struct.unpack(f"{order}i", start[:4])[0]) if len(start) >= 4 else 0
        if size in (NIFTI1_BYTES, NIFTI2_BYTES):
            return size
    return None


def parse_header(raw: bytes, name: str, orientation: Orientation = "auto") -> NiftiHeader:
    """Check a header and say where its voxels lie.

    Args:
        raw: 348 or 540 bytes.
        name: base name or role, for messages.
        orientation: which form to believe; `auto` refuses a file whose sform and qform differ.

    Raises:
        BadInputError: `bad_header`, `too_large`, `not_3d`, `unsupported_voxels`, `nonfinite_scale`, `bad_affine`,
            `singular_affine`, `sheared_affine`, `no_orientation`, `orientation_conflict`, `implausible_grid`,
            `unsupported_media`.
    """
    fields = _unpack(raw, name)
    dims = _dims(fields, name)
    dtype = _dtype(fields, name)
    offset = _offset(fields, len(raw), name)
    slope, inter = _scale(fields, name)
    affine = _affine(fields, dims, name, orientation)
    header = NiftiHeader(dims, dtype, offset, slope, inter, affine, fields.intent, len(raw))
    if math.prod(header.shape) > MAX_VOXELS or header.voxel_bytes > 3 * MAX_VOXEL_BYTES:
        message = f"{name}: {' x '.join(map(str, dims))} voxels are past the limit of {MAX_VOXELS}; crop or resample it"
        raise BadInputError(message, code="too_large", status=413)
    check_grid(affine, header.shape, name)
    return header


def check_grid(affine: NDArray[np.float64], shape: tuple[int, int, int], name: str) -> None:
    """Refuse a grid that no scanner makes.

    Raises:
        BadInputError: `bad_affine`, `singular_affine`, `sheared_affine`, `implausible_grid`.
    """
    if not np.isfinite(affine).all():
        raise BadInputError(f"{name}: the affine holds NaN or infinity; export it again", code="bad_affine")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-9 or abs(np.linalg.det(affine[:3, :3] / np.maximum(spacing, 1e-9))) < 1e-3:
        raise BadInputError(f"{name}: the affine is singular; export it again", code="singular_affine")
    directions = affine[:3, :3] / spacing
    shear = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if shear > MAX_SHEAR:
        message = f"{name}: the affine is sheared ({shear:.3g}): gantry tilt or an affine registration baked in; "
        raise BadInputError(message + "resample it onto a grid with right angles", code="sheared_affine")
    _check_plausible(Geometry(shape, affine), name)


def _check_plausible(geometry: Geometry, name: str) -> None:
    low, high = SPACING_RANGE_MM
    if min(geometry.spacing_mm) < low or max(geometry.spacing_mm) > high:
        spacing = " x ".join(f"{s:.4g}" for s in geometry.spacing_mm)
        message = f"{name}: a spacing of {spacing} mm is outside {low:g}-{high:g}; are its units millimetres?"
        raise BadInputError(message, code="implausible_grid")
    if max(geometry.extent_mm) > MAX_EXTENT_MM or np.abs(geometry.corners_mm()).max() > MAX_WORLD_MM:
        extent = " x ".join(f"{s:.4g}" for s in geometry.extent_mm)
        message = f"{name}: a field of view of {extent} mm, or where it lies, fits no patient; check its header"
        raise BadInputError(message, code="implausible_grid")


@dataclass(frozen=True)
class _Fields:
    order: str
    dim: tuple[int, ...]
    datatype: int
    bitpix: int
    pixdim: tuple[float, ...]
    vox_offset: float
    slope: float
    inter: float
    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    srow: tuple[float, ...]
    intent: int


def _unpack(raw: bytes, name: str) -> _Fields:
    order = "<" if struct.unpack("<i", raw[:4])[0] in (NIFTI1_BYTES, NIFTI2_BYTES) else ">"

    def at(position: int, layout: str) -> tuple[int | float, ...]:
        return struct.unpack_from(order + layout, raw, position)

    if len(raw) == NIFTI1_BYTES:
        magic, whole = raw[344:348], b"n+1\0"
        dim, datatype, pixdim = at(40, "8h"), at(70, "2h"), at(76, "8f")
        offset, scale, units, intent = at(108, "f"), at(112, "2f"), at(123, "B"), at(68, "h")
        codes, quaternion, srow = at(252, "2h"), at(256, "6f"), at(280, "12f")
    else:
        magic, whole = raw[4:12], b"n+2\0\r\n\x1a\n"
        dim, datatype, pixdim = at(16, "8q"), at(12, "2h"), at(104, "8d")
        offset, scale, units, intent = at(168, "q"), at(176, "2d"), at(500, "i"), at(504, "i")
        codes, quaternion, srow = at(344, "2i"), at(352, "6d"), at(400, "12d")
    if magic != whole:
        message = f"{name}: not a single-file NIfTI (magic {magic[:4]!r}); convert Analyze or .hdr/.img to .nii.gz"
        raise BadInputError(message, code="unsupported_media", status=415)
    ints = [tuple(int(v) for v in group) for group in (dim, datatype, codes)]
    return _Fields(
        order, ints[0], ints[1][0], ints[1][1], pixdim, offset[0], scale[0], scale[1], int(units[0]), ints[2][0],
        ints[2][1], quaternion, srow, int(intent[0]),
    )  # fmt: skip


def _dims(fields: _Fields, name: str) -> tuple[int, ...]:
    count = fields.dim[0]
    if not 1 <= count <= 7:
        raise BadInputError(f"{name}: the header claims {count} dimensions", code="bad_header")
    dims = fields.dim[1 : count + 1]
    if min(dims) < 1:
        raise BadInputError(f"{name}: the header claims a dimension of {min(dims)} voxels", code="bad_header")
    if fields.intent in _VECTOR_INTENTS and count == 5 and dims[3:] == (1, 3):
        return dims
    if count < 3 or max(dims[3:], default=1) > 1:
        shape = " x ".join(map(str, dims))
        raise BadInputError(f"{name}: one 3D volume is wanted, this is {shape}; send one volume", code="not_3d")
    return dims[:3]


def _dtype(fields: _Fields, name: str) -> np.dtype[np.generic]:
    code = _DTYPES.get(fields.datatype)
    if code is None:
        message = f"{name}: voxels of NIfTI datatype {fields.datatype} (colour, complex or unknown); send real numbers"
        raise BadInputError(message, code="unsupported_voxels")
    dtype = np.dtype(fields.order + code)
    if fields.bitpix != 8 * dtype.itemsize:
        message = f"{name}: {fields.bitpix} bits a voxel do not fit datatype {fields.datatype}"
        raise BadInputError(message, code="bad_header")
    return dtype


def _offset(fields: _Fields, size: int, name: str) -> int:
    offset = fields.vox_offset
    if not math.isfinite(offset) or offset != int(offset) or not size <= offset <= size + MAX_EXTENSION_BYTES:
        raise BadInputError(f"{name}: voxels cannot begin at byte {offset:g}", code="bad_header")
    return int(offset)


def _scale(fields: _Fields, name: str) -> tuple[float, float]:
    if not (math.isfinite(fields.slope) and math.isfinite(fields.inter)):
        raise BadInputError(f"{name}: scl_slope or scl_inter is NaN or infinite", code="nonfinite_scale")
    return (fields.slope, fields.inter) if fields.slope != 0 else (1.0, 0.0)


def _affine(fields: _Fields, dims: tuple[int, ...], name: str, orientation: Orientation) -> NDArray[np.float64]:
    if fields.units & 7 in (_METRE, _MICROMETRE):
        raise BadInputError(f"{name}: its lengths are not in millimetres; store it so", code="implausible_grid")
    forms = {}
    if fields.sform_code > 0:
        forms["sform"] = np.vstack([np.reshape(fields.srow, (3, 4)), [0, 0, 0, 1]]).astype(np.float64)
    if fields.qform_code > 0:
        forms["qform"] = _qform(fields, name)
    for form in forms.values():
        if not np.isfinite(form).all():
            raise BadInputError(f"{name}: the affine holds NaN or infinity; export it again", code="bad_affine")
    if orientation != "auto":
        forms = {key: form for key, form in forms.items() if key == orientation}
    if not forms:
        wanted = "sform_code and qform_code are 0" if orientation == "auto" else f"there is no {orientation}"
        message = f"{name}: {wanted}, so left and right are not known; export it with its orientation"
        raise BadInputError(message, code="no_orientation")
    if len(forms) == 2:
        _check_forms_agree(forms["sform"], forms["qform"], dims, name)
    return next(iter(forms.values()))


def _check_forms_agree(
    sform: NDArray[np.float64], qform: NDArray[np.float64], dims: tuple[int, ...], name: str
) -> None:
    last = np.asarray(dims[:3]) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last], indexing="ij")).reshape(3, -1)
    gap = np.abs((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]).max()
    if gap > ORIENTATION_TOLERANCE_VOXELS * np.linalg.norm(sform[:3, :3], axis=0).min():
        message = f"{name}: sform and qform place it {gap:.3g} mm apart; say which to use (orientation=sform or qform)"
        raise BadInputError(message, code="orientation_conflict")


def _qform(fields: _Fields, name: str) -> NDArray[np.float64]:
    """Method 2 of nifti1.h: unit quaternion, spacing, offset, and qfac for the handedness."""
    b, c, d, *offset = fields.quaternion
    spacing = fields.pixdim[1:4]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise BadInputError(f"{name}: pixdim is not a positive spacing", code="bad_header")
    square = b * b + c * c + d * d
    if math.isfinite(square) and square > 1 + 1e-4:
        raise BadInputError(f"{name}: qform's quaternion is longer than 1", code="bad_header")
    a = math.sqrt(max(0.0, 1.0 - square)) if math.isfinite(square) else math.nan
    norm = math.sqrt(a * a + square)
    a, b, c, d = (value / norm for value in (a, b, c, d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array([1.0, 1.0, -1.0 if fields.pixdim[0] < 0 else 1.0]) * np.asarray(spacing)
    affine[:3, 3] = offset
    return affine
