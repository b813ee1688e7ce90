"""NIfTI files made byte by byte, so that any field can be wrong."""

from __future__ import annotations

import gzip
import struct

import numpy as np

SHAPE = (5, 6, 7)
AFFINE = np.array([[1.5, 0, 0, -10], [0, 2.0, 0, 20], [0, 0, 3.0, -30], [0, 0, 0, 1.0]])
_CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}


def voxels(dtype: str = "i2", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)


def nifti1(
    data: np.ndarray | None = None,
    *,
    order: str = "<",
    affine: np.ndarray = AFFINE,
    content: bytes | None = None,
    dim: tuple[int, ...] | None = None,
    patches: dict[int, tuple[str, tuple[float, ...]]] | None = None,
) -> bytes:
    """A .nii: sform from `affine`, no qform. `patches` maps byte offsets to (struct layout, values)."""
    data = voxels() if data is None else data
    kind = data.dtype.str[1:]
    header = bytearray(352)
    dims = dim if dim is not None else (data.ndim, *data.shape)
    dims = (*dims, *([1] * (8 - len(dims))))
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, *dims)
    struct.pack_into(order + "2h", header, 70, _CODES[kind], 8 * data.dtype.itemsize)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    struct.pack_into(order + "8f", header, 76, 1, *spacing, 1, 1, 1, 1)
    struct.pack_into(order + "3f", header, 108, 352, 1, 0)
    header[123] = 2
    struct.pack_into(order + "2h", header, 252, 0, 1)
    struct.pack_into(order + "12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    for offset, (layout, values) in (patches or {}).items():
        struct.pack_into(order + layout, header, offset, *values)
    body = data.astype(np.dtype(order + kind)).tobytes(order="F") if content is None else content
    return bytes(header) + body


def nifti2(data: np.ndarray | None = None, *, order: str = "<") -> bytes:
    """The same volume as a NIfTI-2 .nii."""
    data = voxels() if data is None else data
    kind = data.dtype.str[1:]
    header = bytearray(544)
    struct.pack_into(order + "i", header, 0, 540)
    header[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into(order + "2h", header, 12, _CODES[kind], 8 * data.dtype.itemsize)
    struct.pack_into(order + "8q", header, 16, 3, *data.shape, 1, 1, 1, 1)
    struct.pack_into(order + "8d", header, 104, 1, 1.5, 2, 3, 1, 1, 1, 1)
    struct.pack_into(order + "q2d", header, 168, 544, 1, 0)
    struct.pack_into(order + "2i", header, 344, 0, 1)
    struct.pack_into(order + "12d", header, 400, *AFFINE[:3].ravel())
    struct.pack_into(order + "i", header, 500, 2)
    return bytes(header) + data.astype(np.dtype(order + kind)).tobytes(order="F")


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def gz_of_zeros(megabytes: int, start: bytes = b"") -> bytes:
    """A gzip stream of `start` and then zeros, made without holding them."""
    import zlib

    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(start)]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])
