"""Linear interpolation of whole volumes, compiled: where a voxel lies and what is read there in one pass.

torch's `grid_sample` reads three times as slowly on a CPU, and wants all places written out before (ADR 0021).
Nothing here is differentiable: that is `hepalign.image.resample.sample_grid`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry

# Coordinates are written out for this many voxels at a time: they stay in the cache, and memory with the images.
CHUNK_VOXELS = 1 << 18
# Fewer are read sooner than threads are started.
PARALLEL_VOXELS = 1 << 14


@dataclass(frozen=True, eq=False)
class VoxelMap:
    """Where the voxels of one grid lie in another one: at the continuous index `matrix · (i, j, k, 1) + turn · v`.

    Args:
        shape: (D, H, W) of the grid.
        matrix: 4 x 4, its voxel indices to the other's.
        vectors: v at each voxel, float32 (D, H, W, 3), or None where the matrix says all.
        turn: 3 x 3, vectors to indices of the other grid.
    """

    shape: tuple[int, int, int]
    matrix: NDArray[np.float64]
    vectors: NDArray[np.float32] | None = None
    turn: NDArray[np.float64] | None = None

    @classmethod
    def between(cls, read: Geometry, grid: Geometry, vectors_mm: NDArray[np.float32] | None = None) -> VoxelMap:
        """Where `grid`'s voxels, displaced by `vectors_mm` in the world, lie in the grid that is read."""
        to_index = np.asarray(np.linalg.inv(read.affine), dtype=np.float64)
        return cls(grid.shape, to_index @ grid.affine, vectors_mm, to_index[:3, :3])

    @classmethod
    def of_indices(cls, indices: NDArray[np.float32]) -> VoxelMap:
        """Places that are indices already, (D, H, W, 3)."""
        return cls((indices.shape[0], indices.shape[1], indices.shape[2]), np.zeros((4, 4)), indices, np.eye(3))

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """Slab by slab along the first axis, the slab and its indices (d, H, W, 3), float32.

        Without vectors they are within 1e-4 voxels of what float64 gives on 512 voxels.
        """
        depth, height, width = self.shape
        matrix = torch.tensor(self.matrix[:3], dtype=torch.float64)
        i, j, k = (torch.arange(n, dtype=torch.float64)[:, None] for n in self.shape)
        plane = ((j * matrix[:, 1])[:, None] + k * matrix[:, 2] + matrix[:, 3]).float()
        rows = (i * matrix[:, 0])[:, None, None].float()
        step = max(1, CHUNK_VOXELS // (height * width))
        for start in range(0, depth, step):
            slab = slice(start, min(start + step, depth))
            indices = rows[slab] + plane
            if self.vectors is not None and self.turn is not None:
                turn = torch.from_numpy(np.ascontiguousarray(self.turn.T, dtype=np.float32))
                indices.view(-1, 3).addmm_(readable(self.vectors[slab]).view(-1, 3), turn)
            yield slab, indices


def readable(data: NDArray[np.generic]) -> Tensor:
    """An array as a tensor that is only read, copied where torch would warn of a read-only one."""
    contiguous = np.ascontiguousarray(data)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def read_linear(
    image: NDArray[np.float32],
    places: VoxelMap,
    out: NDArray[np.float32],
    *,
    fills: NDArray[np.float32] | None = None,
    growth: NDArray[np.float32] | None = None,
) -> None:
    """Write an image's values at the places of a grid's voxels into `out`.

    Up to half a voxel beyond the outermost centres the border's value holds. Further out it is the fill, or without
    one the border's value and what it grows by.

    Args:
        image: (D, H, W, C).
        places: of a grid (d, h, w) in the image.
        out: (d, h, w, C), in any order of memory.
        fills: a value outside for each channel, (C,).
        growth: a change for every voxel beyond the outermost centres along each of the image's axes, (3, C).
    """
    channels = image.shape[3]
    vectors = np.broadcast_to(np.float32(0), (*places.shape, 3)) if places.vectors is None else places.vectors
    turn = np.zeros((3, 3)) if places.turn is None else places.turn
    words = (
        np.ascontiguousarray(image),
        np.ascontiguousarray(places.matrix, dtype=np.float64),
        vectors,
        np.ascontiguousarray(turn, dtype=np.float64),
        np.zeros((3, channels), np.float32) if growth is None else np.ascontiguousarray(growth, dtype=np.float32),
        np.zeros(channels, np.float32) if fills is None else np.ascontiguousarray(fills, dtype=np.float32),
        fills is not None,
        out,
    )
    read, depth, threads = _compiled(), places.shape[0], torch.get_num_threads()
    if threads == 1 or np.prod(places.shape) < PARALLEL_VOXELS:
        read(*words, 0, depth)
        return
    # several for each thread, for a slab outside the image takes a part of the time
    step = -(-depth // (4 * threads))
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(read, *words, start, min(start + step, depth)) for start in range(0, depth, step)]
    for part in parts:
        part.result()


@cache
def _compiled() -> Callable[..., None]:
    """`_read` as machine code: made in a second, and kept on disk where there is a place for it."""
    from numba import boolean, float32, float64, njit, types, uintp, void

    image, moved = (types.Array(float32, 4, order, readonly=True) for order in ("C", "A"))
    matrix = types.Array(float64, 2, "C", readonly=True)
    growth, fills = (types.Array(float32, axes, "C", readonly=True) for axes in (2, 1))
    out = types.Array(float32, 4, "A")
    signature = void(image, matrix, moved, matrix, growth, fills, boolean, out, uintp, uintp)
    try:
        compiled: Callable[..., None] = njit(signature, nogil=True, fastmath={"contract"}, cache=True)(_read)
    except (RuntimeError, OSError):
        # no directory to keep it in, or no space in there
        compiled = njit(signature, nogil=True, fastmath={"contract"})(_read)
    return compiled


# All counting is unsigned: a signed index would be asked at every voxel whether it counts from the end.
def _read(  # type: ignore[no-untyped-def]
    image, matrix, vectors, turn, growth, fills, filling, out, start, stop
):
    depth, height, width, channels = image.shape
    flat = image.reshape(-1)
    last_x, last_y, last_z = depth - 1.0, height - 1.0, width - 1.0
    along_k = np.uintp(channels)
    along_j = np.uintp(width) * along_k
    along_i = np.uintp(height) * along_j
    still = np.uintp(0)
    for i in range(start, stop):
        for j in range(np.uintp(out.shape[1])):
            x_0 = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            y_0 = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            z_0 = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            line, moved = out[i, j], vectors[i, j]
            for k in range(np.uintp(out.shape[2])):
                u, v, w = moved[k, 0], moved[k, 1], moved[k, 2]
                x = x_0 + matrix[0, 2] * k + (turn[0, 0] * u + turn[0, 1] * v + turn[0, 2] * w)
                y = y_0 + matrix[1, 2] * k + (turn[1, 0] * u + turn[1, 1] * v + turn[1, 2] * w)
                z = z_0 + matrix[2, 2] * k + (turn[2, 0] * u + turn[2, 1] * v + turn[2, 2] * w)
                # said so that a place that is no number is outside
                inside = -0.5 <= x < last_x + 0.5 and -0.5 <= y < last_y + 0.5 and -0.5 <= z < last_z + 0.5
                if filling and not inside:
                    for c in range(along_k):
                        line[k, c] = fills[c]
                    continue
                near_x = min(x, last_x) if x > 0 else 0.0
                near_y = min(y, last_y) if y > 0 else 0.0
                near_z = min(z, last_z) if z > 0 else 0.0
                p, q, r = np.uintp(near_x), np.uintp(near_y), np.uintp(near_z)
                part_i, part_j, part_k = np.float32(near_x - p), np.float32(near_y - q), np.float32(near_z - r)
                here = p * along_i + q * along_j + r * along_k
                to_i = along_i if near_x < last_x else still
                to_j = along_j if near_y < last_y else still
                to_k = along_k if near_z < last_z else still
                for c in range(along_k):
                    at = here + c
                    v_00 = flat[at] + (flat[at + to_k] - flat[at]) * part_k
                    v_01 = flat[at + to_j] + (flat[at + to_j + to_k] - flat[at + to_j]) * part_k
                    v_10 = flat[at + to_i] + (flat[at + to_i + to_k] - flat[at + to_i]) * part_k
                    v_11 = flat[at + to_i + to_j] + (flat[at + to_i + to_j + to_k] - flat[at + to_i + to_j]) * part_k
                    v_0, v_1 = v_00 + (v_01 - v_00) * part_j, v_10 + (v_11 - v_10) * part_j
                    line[k, c] = v_0 + (v_1 - v_0) * part_i
                if x != near_x or y != near_y or z != near_z:
                    for c in range(along_k):
                        line[k, c] += (
                            np.float32(x - near_x) * growth[0, c]
                            + np.float32(y - near_y) * growth[1, c]
                            + np.float32(z - near_z) * growth[2, c]
                        )
