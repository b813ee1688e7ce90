"""Stored pixel values of DICOM objects, their size checked against Rows × Columns before anything is decoded."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, RLELossless, SecondaryCaptureImageStorage

from hepalign.errors import BadInputError
from hepalign.image.dicom_bytes import GDCM_ONLY, UNCOMPRESSED
from hepalign.image.nifti_header import MAX_VOXEL_BYTES

# A second is enough for thirty slices of 512 x 512.
GDCM_TIMEOUT_S = 120.0
_JPEG_START, _JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
# SOF0-SOF15 without DHT, JPG and DAC, and JPEG-LS's SOF55 (ITU-T T.81 table B.1, T.87).
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_DESCRIPTION = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip


@dataclass(frozen=True)
class _Size:
    frames: int
    rows: int
    columns: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.bits // 8


def read_pixels(headers: Sequence[Dataset], name: str) -> Iterator[NDArray[np.generic]]:
    """Decode objects one after the other.

    Args:
        headers: data sets with their PixelData, parsed from bytes that `check_bytes` passed.
        name: what to call them in messages.

    Yields:
        (frames, rows, columns), the stored values of each object.

    Raises:
        BadInputError: `unsupported_voxels` for colour or other than 8 or 16 bits, `pixel_size_mismatch` for
            Rows × Columns that lie, `bad_pixels` for what does not decode, `too_large` (413).
    """
    sizes = [_checked_size(header, name) for header in headers]
    with tempfile.TemporaryDirectory() as folder:
        outside = {n: header for n, header in enumerate(headers) if header.file_meta.TransferSyntaxUID in GDCM_ONLY}
        if outside:
            _decode_in_gdcm(outside, Path(folder), name)
        for n, (header, size) in enumerate(zip(headers, sizes, strict=True)):
            try:
                pixels = np.load(Path(folder) / f"{n}.npy") if n in outside else np.asarray(header.pixel_array)
                frames = pixels.reshape(size.frames, size.rows, size.columns)
            except Exception:  # noqa: BLE001  codecs raise whatever the bytes led them to
                raise _undecodable(name) from None
            yield frames


def _checked_size(header: Dataset, name: str) -> _Size:
    try:
        size = _Size(
            int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns), int(header.BitsAllocated)
        )
        samples, photometric = int(header.SamplesPerPixel), str(header.PhotometricInterpretation)
        content = bytes(header.PixelData)
    except (AttributeError, TypeError, ValueError):
        message = f"{name}: an image without pixels, or without their description"
        raise BadInputError(message, code="bad_pixels") from None
    if samples != 1 or size.bits not in (8, 16) or not photometric.startswith("MONOCHROME"):
        message = f"{name}: colour or {size.bits}-bit pixels; send the original images"
        raise BadInputError(message, code="unsupported_voxels")
    if "ModalityLUTSequence" in header:
        raise BadInputError(f"{name}: values behind a look-up table; send original images", code="unsupported_voxels")
    if min(size.rows, size.columns, size.frames) < 1:
        raise _mismatch(name)
    expected = size.frames * size.frame_bytes
    if expected > MAX_VOXEL_BYTES:
        raise BadInputError(f"{name}: more pixels than are read", code="too_large", status=413)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax not in UNCOMPRESSED:
        _check_codestreams(content, syntax, size, name)
    elif len(content) != expected + expected % 2:
        raise _mismatch(name)
    return size


def _check_codestreams(content: bytes, syntax: str, size: _Size, name: str) -> None:
    """Every compressed frame declares the size that the header declares: no codec allocates more than was allowed."""
    try:
        streams = list(generate_frames(content, number_of_frames=size.frames))
    except (ValueError, struct.error, EOFError):
        raise _undecodable(name) from None
    if len(streams) != size.frames:
        raise _mismatch(name)
    for stream in streams:
        if syntax == RLELossless:
            # Packed runs grow by 1/128 at worst: a longer stream cannot be this frame.
            if len(stream) > size.frame_bytes + size.frame_bytes // 64 + 128:
                raise _mismatch(name)
        elif _declared_size(stream) != (size.rows, size.columns, 1):
            raise _mismatch(name)


def _declared_size(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components by a JPEG 2000 SIZ or a JPEG or JPEG-LS frame header; None where there is none."""
    if stream.startswith(_JPEG2000_START) and len(stream) >= 42:
        right, bottom, left, top = struct.unpack_from(">4L", stream, 8)
        (components,) = struct.unpack_from(">H", stream, 40)
        return bottom - top, right - left, components
    position = 2
    while stream.startswith(_JPEG_START) and position + 10 <= len(stream) and stream[position] == 0xFF:
        if stream[position + 1] in _FRAME_MARKERS:
            rows, columns, components = struct.unpack_from(">2HB", stream, position + 5)
            return rows, columns, components
        position += 2 + int(struct.unpack_from(">H", stream, position + 2)[0])
    return None


def _decode_in_gdcm(headers: dict[int, Dataset], folder: Path, name: str) -> None:
    """Let a process of its own turn the pixels, and nothing else of the objects, into folder/N.npy."""
    for n, header in headers.items():
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, UID("2.25.1")
        meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
        bare = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        bare.SOPClassUID, bare.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
        for keyword in _DESCRIPTION:
            setattr(bare, keyword, header.get(keyword))
        if header.get("NumberOfFrames"):
            bare.NumberOfFrames = header.NumberOfFrames
        bare["PixelData"] = header["PixelData"]
        bare.save_as(folder / f"{n}.dcm")
    command = [sys.executable, "-m", "hepalign.image.gdcm_worker", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=GDCM_TIMEOUT_S)  # noqa: S603  our own module
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise _undecodable(name) from None


def _undecodable(name: str) -> BadInputError:
    return BadInputError(f"{name}: pixels that do not decode; export it again", code="bad_pixels")


def _mismatch(name: str) -> BadInputError:
    message = f"{name}: Rows × Columns and the pixels do not agree; export it again"
    return BadInputError(message, code="pixel_size_mismatch")
