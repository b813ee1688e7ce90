"""Reading many channels at scattered places, quickly: trilinear interpolation as one weighted gather.

`embedding_bag` sums eight weighted rows of a (voxels, channels) table in one vectorised, threaded pass; measured on two
cores it is 4 to 8 times faster than `grid_sample` from four channels on.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SLAB_VOXELS = 16_384


def to_rows(image: Tensor) -> Tensor:
    """[1,C,D,H,W] as a contiguous (D,H,W,C) float32 table."""
    return image[0].permute(1, 2, 3, 0).contiguous().float()


def from_rows(rows: Tensor) -> Tensor:
    """(D,H,W,C) as [1,C,D,H,W], a view."""
    return rows.permute(3, 0, 1, 2)[None]


def index_rows(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Every voxel's index as float32 (D,H,W,3)."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape[:3]), indexing="ij"), -1)


class Places:
    """Continuous voxel indices (..., 3) prepared for reading tables of one shape; border values hold outside."""

    def __init__(self, indices: Tensor, shape: torch.Size | tuple[int, ...]) -> None:
        d, h, w = shape[:3]
        last = torch.tensor([d - 1, h - 1, w - 1], dtype=torch.float32)
        self.kept = indices.shape[:-1]
        points = torch.minimum(indices.reshape(-1, 3).clamp_min(0), last)
        base = torch.minimum(points.floor(), (last - 1).clamp_min(0))
        i, j, k = (points - base).unbind(1)
        corner = base.to(torch.int32)
        start = (corner[:, 0] * h + corner[:, 1]) * w + corner[:, 2]
        di, dj, dk = (int(n > 1) * s for n, s in ((d, h * w), (h, w), (w, 1)))
        steps = torch.tensor([a + b + c for a in (0, di) for b in (0, dj) for c in (0, dk)], dtype=torch.int32)
        self.rows = start[:, None] + steps
        ij = torch.stack([(1 - i) * (1 - j), (1 - i) * j, i * (1 - j), i * j], 1)
        self.weights = torch.stack([ij * (1 - k)[:, None], ij * k[:, None]], 2).reshape(-1, 8)

    def read(self, table: Tensor) -> Tensor:
        """Values (..., C) of a (D,H,W,C) table."""
        flat = table.reshape(-1, table.shape[-1])
        values = F.embedding_bag(self.rows, flat, per_sample_weights=self.weights, mode="sum")
        return values.reshape(*self.kept, table.shape[-1])


def read_at(table: Tensor, indices: Tensor) -> Tensor:
    """Values (d,h,w,C) of a table at indices (d,h,w,3), slab by slab so that scratch memory stays in the cache."""
    out = table.new_empty(*indices.shape[:3], table.shape[-1])
    planes = max(1, SLAB_VOXELS // (indices.shape[1] * indices.shape[2]))
    for start in range(0, indices.shape[0], planes):
        part = indices[start : start + planes]
        out[start : start + planes] = Places(part, table.shape).read(table)
    return out


@lru_cache(maxsize=64)
def _gaussian_matrix(length: int, sigma_voxels: float) -> Tensor:
    """Row i holds the weights with which voxel i sees the others; what lies outside counts as the border voxel."""
    reach = max(1, int(3 * sigma_voxels + 0.5))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (steps / sigma_voxels) ** 2)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    rows = torch.arange(length)
    for step, weight in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
        matrix[rows, (rows + step).clamp(0, length - 1)] += weight
    return matrix.float()


def smooth(image: Tensor, sigma_voxels: float) -> Tensor:
    """[C,D,H,W] under a Gaussian, the border value outside.

    One matrix product an axis: at these sizes faster than any loop over a kernel.
    """
    c, d, h, w = image.shape
    along_d, along_h, along_w = (_gaussian_matrix(n, sigma_voxels) for n in (d, h, w))
    image = (image.reshape(-1, w) @ along_w.T).reshape(c * d, h, w)
    image = torch.matmul(along_h, image).reshape(c, d, h * w)
    return torch.matmul(along_d, image).reshape(c, d, h, w)


def smooth_rows(rows: Tensor, sigma_voxels: float) -> Tensor:
    """(D,H,W,C) under a Gaussian."""
    return smooth(rows.permute(3, 0, 1, 2).contiguous(), sigma_voxels).permute(1, 2, 3, 0).contiguous()
