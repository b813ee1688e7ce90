"""Stored pixel values of one DICOM object, their size checked against Rows × Columns before anything is decoded."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from hepalign.errors import BadInputError
from hepalign.image.dicom_bytes import GDCM_ONLY, UNCOMPRESSED
from hepalign.image.nifti_header import MAX_VOXEL_BYTES

_JPEG_START, _JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
# SOF0-SOF15 without DHT, JPG and DAC, and JPEG-LS's SOF55 (ITU-T T.81 table B.1, T.87).
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def read_frames(header: Dataset, name: str) -> tuple[NDArray[np.generic], bool]:
    """Decode an object's pixels.

    Args:
        header: a data set with its PixelData, parsed from bytes that `check_bytes` passed.
        name: what to call it in messages.

    Returns:
        (frames, rows, columns), and whether the rescale has been applied already (GDCM applies it).

    Raises:
        BadInputError: `unsupported_voxels` for colour or other than 8 or 16 bits, `pixel_size_mismatch` for
            Rows × Columns that lie, `bad_pixels` for what does not decode, `too_large` (413).
    """
    try:
        rows, columns = int(header.Rows), int(header.Columns)
        frames = int(header.get("NumberOfFrames") or 1)
        bits, samples = int(header.BitsAllocated), int(header.SamplesPerPixel)
        photometric = str(header.PhotometricInterpretation)
        content = bytes(header.PixelData)
    except (AttributeError, TypeError, ValueError):
        message = f"{name}: an image without pixels, or without their description"
        raise BadInputError(message, code="bad_pixels") from None
    if samples != 1 or bits not in (8, 16) or not photometric.startswith("MONOCHROME"):
        raise BadInputError(f"{name}: colour or {bits}-bit pixels; send the original images", code="unsupported_voxels")
    if "ModalityLUTSequence" in header:
        raise BadInputError(f"{name}: values behind a look-up table; send original images", code="unsupported_voxels")
    expected = rows * columns * frames * bits // 8
    if min(rows, columns, frames) < 1:
        raise _mismatch(name)
    if expected > MAX_VOXEL_BYTES:
        raise BadInputError(f"{name}: {rows} x {columns} x {frames} pixels", code="too_large", status=413)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in UNCOMPRESSED:
        if len(content) != expected + expected % 2:
            raise _mismatch(name)
    else:
        _check_codestreams(content, syntax, (rows, columns, frames), expected // frames, name)
    return _decode(header, (frames, rows, columns), name)


def _decode(header: Dataset, shape: tuple[int, int, int], name: str) -> tuple[NDArray[np.generic], bool]:
    through_gdcm = header.file_meta.TransferSyntaxUID in GDCM_ONLY
    try:
        pixels = _decode_with_gdcm(header) if through_gdcm else np.asarray(header.pixel_array)
        return pixels.reshape(shape), through_gdcm
    except Exception:  # noqa: BLE001  codecs raise whatever the bytes led them to
        raise BadInputError(f"{name}: pixels that do not decode; export it again", code="bad_pixels") from None


def _decode_with_gdcm(header: Dataset) -> NDArray[np.generic]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object.dcm"
        header.save_as(path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        pixels: NDArray[np.generic] = sitk.GetArrayFromImage(reader.Execute())
    return pixels


def _check_codestreams(content: bytes, syntax: str, size: tuple[int, int, int], frame_bytes: int, name: str) -> None:
    """Every compressed frame declares the size that the header declares: no codec allocates more than was allowed."""
    rows, columns, frames = size
    seen = 0
    for stream in _streams(content, frames, name):
        seen += 1
        if syntax == RLELossless:
            # Packed runs grow by 1/128 at worst: a longer stream cannot be this frame.
            if len(stream) > frame_bytes + frame_bytes // 64 + 128:
                raise _mismatch(name)
        elif _declared_size(stream) != (rows, columns):
            raise _mismatch(name)
    if seen != frames:
        raise _mismatch(name)


def _streams(content: bytes, frames: int, name: str) -> Iterator[bytes]:
    try:
        yield from generate_frames(content, number_of_frames=frames)
    except (ValueError, struct.error, EOFError):
        raise BadInputError(f"{name}: compressed pixels that break off", code="bad_pixels") from None


def _declared_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns from a JPEG 2000 SIZ or a JPEG or JPEG-LS frame header; None where there is none."""
    if stream.startswith(_JPEG2000_START) and len(stream) >= 24:
        right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
        return bottom - top, right - left
    position = 2
    while stream.startswith(_JPEG_START) and position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", stream, position + 5)
            return rows, columns
        position += 2 + int(struct.unpack_from(">H", stream, position + 2)[0])
    return None


def _mismatch(name: str) -> BadInputError:
    message = f"{name}: Rows × Columns and the pixels do not agree; export it again"
    return BadInputError(message, code="pixel_size_mismatch")
