"""NIfTI files in and out."""

from __future__ import annotations

import io
import os
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Self

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from hepalign.errors import BadInputError, UsageError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti_header import (
    NiftiHeader,
    Orientation,
    header_size,
    parse_header,
)
from hepalign.image.stored_gzip import StoredGzip
from hepalign.image.volume import Volume

GZIP_MAGIC = b"\x1f\x8b"
# Some writers pad to a block; more than this after the voxels is another file or an attack.
MAX_TRAILING_BYTES = 1 << 20
# What is gzip and not NIfTI is looked at this far, to tell a wrong file from a bomb.
MAX_UNKNOWN_BYTES = 64 << 20
_CHUNK = 1 << 20
_PLANES = 8
# ISA-L's: twenty times as fast as zlib's at the same size.
_GZIP_LEVEL = 1


def read_nifti(
    source: Path | str | bytes,
    *,
    name: str | None = None,
    orientation: Orientation = "auto",
) -> Volume:
    """Read one 3D volume from a `.nii` or `.nii.gz` file or its bytes, NIfTI 1 or 2, either byte order.

    Every byte is checked before it is believed and inflated as a stream, so that memory stays within the declared
    voxels. Integers without a scale keep their dtype; scaled voxels are float32.

    Args:
        source: a file or its bytes.
        name: what to call it in messages; the file's base name by default.
        orientation: which form to believe where sform and qform differ; `auto` refuses such a file.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: those of `parse_header`, and `empty_file`, `unsupported_media` (415), `too_large` (413),
            `truncated`, `corrupt_gzip`, `trailing_data`, `nonfinite_voxels`.
    """
    name = source_name(source, name)
    header, voxels, _ = read_voxels(source, name=name, orientation=orientation)
    if len(header.dims) != 3:
        raise BadInputError(f"{name}: a displacement field where an image is wanted", code="not_3d")
    return Volume(voxels, Geometry(header.shape, header.affine))


def read_geometry(source: Path | str | bytes, *, name: str | None = None) -> Geometry:
    """The grid of a volume, from its header alone; errors as `read_nifti` up to there."""
    name = source_name(source, name)
    with closing(_Stream.open(source, name)) as stream:
        header = parse_header(stream.header(), name, "auto")
    return Geometry(header.shape, header.affine)


def read_voxels(
    source: Path | str | bytes, *, name: str | None = None, orientation: Orientation = "auto"
) -> tuple[NiftiHeader, NDArray[np.generic], bytes]:
    """The checked header, the scaled voxels (native byte order) of a volume or vector field, the bytes between them."""
    name = source_name(source, name)
    with closing(_Stream.open(source, name)) as stream:
        header = parse_header(stream.header(), name, orientation)
        between = stream.exactly(header.offset - header.size)
        raw = stream.voxels(header)
        stream.expect_end()
    native = header.dtype.newbyteorder("=")
    voxels = turned(raw.reshape(header.dims, order="F"), np.empty(header.dims, native))
    if (header.slope, header.inter) != (1.0, 0.0):
        voxels = _rescaled(voxels, header.slope, header.inter)
    if voxels.dtype.kind == "f" and not (np.abs(voxels) <= np.finfo(np.float32).max).all():
        raise BadInputError(
            f"{name}: voxels that are NaN, infinite or past float32; fill them before sending", code="nonfinite_voxels"
        )
    return header, voxels, between


def write_nifti(volume: Volume, path: Path | str) -> None:
    """Write `.nii` or `.nii.gz` (by the name): sform and qform in scanner RAS mm, the same bytes for the same volume.

    bool becomes uint8, 64-bit integers 32 bits; the file appears whole or not at all.

    Raises:
        UsageError: `bad_file_name` for another ending, `unsupported_voxels` for what NIfTI readers cannot share.
    """
    image = nib.Nifti1Image(file_order(_portable(volume.data)), volume.geometry.affine)
    write_image(image, volume.geometry, Path(path))


def write_image(image: nib.Nifti1Image, geometry: Geometry, path: Path, *, pack: bool = True) -> None:
    """Write a nibabel image whose grid is `geometry`, atomically and without a time stamp.

    With `pack` off a `.nii.gz` stores its bytes as they are.
    """
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    image.header.set_xyzt_units("mm")
    packed = path.name.endswith(".nii.gz")
    if not packed and path.suffix != ".nii":
        raise UsageError(f"{path.name}: a NIfTI file ends in .nii or .nii.gz", code="bad_file_name")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            if packed:
                # an empty name and no time: the same bytes for the same volume
                gzip = igzip.IGzipFile("", "wb", _GZIP_LEVEL, file, 0) if pack else StoredGzip(file)  # type: ignore[no-untyped-call]
                with gzip as stream:
                    image.to_stream(stream)
            else:
                image.to_stream(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_order(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same array with its first axis fastest, as NIfTI files have it."""
    return turned(data, np.empty(data.shape, data.dtype, order="F"))


def turned(source: NDArray[np.generic], target: NDArray[np.generic]) -> NDArray[np.generic]:
    """`target`, filled from an array whose axes lie in memory the other way round.

    A few planes of the source at a time both sides stay in the cache: five times as fast as at once.
    """
    slowest = 2 if source.flags.f_contiguous else 0
    for start in range(0, source.shape[slowest], _PLANES):
        planes = (*[slice(None)] * slowest, slice(start, start + _PLANES))
        target[planes] = source[planes]
    return target


def source_name(source: Path | str | bytes, name: str | None) -> str:
    """What to call a source in messages: never its folder."""
    if name is not None:
        return name
    return "the upload" if isinstance(source, bytes) else Path(source).name


def _rescaled(stored: NDArray[np.generic], slope: float, inter: float) -> NDArray[np.float32]:
    """`slope * stored + inter`, in float64 a plane at a time, rounded once to float32."""
    scaled = np.empty(stored.shape, np.float32)
    # What overflows becomes infinite, and infinite voxels are refused.
    with np.errstate(over="ignore"):
        for plane, out in zip(stored, scaled, strict=True):
            out[...] = plane.astype(np.float64) * slope + inter
    return scaled


def _portable(data: NDArray[np.generic]) -> NDArray[np.generic]:
    if data.dtype == np.bool_:
        return data.astype(np.uint8)
    if data.dtype.kind in "iu" and data.dtype.itemsize == 8:
        if data.size and (data.min() < -(2**31) or data.max() >= 2**31):
            raise UsageError("integer voxels past 32 bits are not portable", code="unsupported_voxels")
        return data.astype(np.int32)
    if data.dtype == np.float16:
        return data.astype(np.float32)
    if data.dtype.kind not in "iuf" or data.dtype.itemsize > 8:
        raise UsageError(f"voxels of type {data.dtype} do not fit NIfTI", code="unsupported_voxels")
    return data


class _Stream:
    """The bytes of a file, inflated as they are asked for and never faster."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        start = file.read(len(GZIP_MAGIC))
        if not start:
            raise BadInputError(f"{name}: the file is empty; send it again", code="empty_file")
        self._gzip = start == GZIP_MAGIC
        self._inflate = isal_zlib.decompressobj(wbits=31)
        self._input = start
        self._left = b""

    @classmethod
    def open(cls, source: Path | str | bytes, name: str) -> Self:
        if isinstance(source, bytes):
            return cls(io.BytesIO(source), name)
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"{name}: there is no such file", code="no_such_file")
        return cls(path.open("rb"), name)

    def close(self) -> None:
        self._file.close()

    def header(self) -> bytes:
        """The header's bytes, or the right refusal of what has none."""
        start = self.read(4)
        size = header_size(start)
        if size is None:
            if self._gzip:
                self._refuse_bomb()
            message = f"{self.name}: not a NIfTI file, whatever its name says; send .nii, .nii.gz or DICOM"
            raise BadInputError(message, code="unsupported_media", status=415)
        return start + self.exactly(size - 4)

    def voxels(self, header: NiftiHeader) -> NDArray[np.generic]:
        """The voxel block, flat, in the file's byte order; memory grows only as bytes arrive."""
        out = np.empty(header.voxel_bytes, np.uint8)
        filled = 0
        while filled < len(out):
            piece = self._piece(len(out) - filled)
            if not piece:
                raise self._ends_early()
            out[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        return out.view(header.dtype)

    def expect_end(self) -> None:
        """Check the gzip trailer and that nothing of size follows the voxels."""
        trailing = 0
        while chunk := self.read(_CHUNK):
            trailing += len(chunk)
            if trailing > MAX_TRAILING_BYTES:
                message = f"{self.name}: data go on after the declared voxels; export it again"
                raise BadInputError(message, code="trailing_data")

    def exactly(self, count: int) -> bytes:
        """`count` bytes, or `truncated`."""
        data = self.read(count)
        if len(data) < count:
            raise self._ends_early()
        return data

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        data = bytearray()
        while len(data) < count and (piece := self._piece(count - len(data))):
            data += piece
        return bytes(data)

    def _ends_early(self) -> BadInputError:
        return BadInputError(f"{self.name}: the file ends before its voxels do; send it again", code="truncated")

    def _piece(self, most: int) -> bytes:
        """One to `most` bytes, as they come; empty at the end."""
        data = self._left or self._more()
        self._left = data[most:]
        return data[:most]

    def _more(self) -> bytes:
        """Some further bytes of content, at most a chunk; empty at the end."""
        if not self._gzip:
            data, self._input = self._input or self._file.read(_CHUNK), b""
            return data
        while True:
            if self._inflate.eof:
                # Another gzip member may follow; zeros are padding.
                self._input = (self._inflate.unused_data + self._input).lstrip(b"\0") or self._file.read(_CHUNK)
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    return b""
                self._inflate = isal_zlib.decompressobj(wbits=31)
            data = self._input or self._file.read(_CHUNK)
            try:
                out = self._inflate.decompress(data, _CHUNK)
            except IsalError as error:  # type: ignore[misc]  # its stub says it is an instance
                message = f"{self.name}: the gzip stream is damaged; send it again"
                raise BadInputError(message, code="corrupt_gzip") from error
            self._input = self._inflate.unconsumed_tail
            if out:
                return out
            if not data and not self._inflate.eof:
                raise BadInputError(f"{self.name}: the gzip stream breaks off; send it again", code="truncated")

    def _refuse_bomb(self) -> None:
        seen = 0
        while chunk := self.read(_CHUNK):
            seen += len(chunk)
            if seen > MAX_UNKNOWN_BYTES:
                message = f"{self.name}: it inflates without end and is no NIfTI"
                raise BadInputError(message, code="too_large", status=413)
