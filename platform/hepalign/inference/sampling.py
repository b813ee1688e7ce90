"""Reading many channels at scattered places, quickly: trilinear interpolation as one weighted gather.

`embedding_bag` sums eight weighted rows of a (voxels, channels) table in one vectorised, threaded pass; measured on two
cores it is 4 to 8 times faster than `grid_sample` from four channels on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def smooth_rows(rows: Tensor, size: int, passes: int = 2) -> Tensor:
    """(D,H,W,C) under a box of `size` (odd) voxels, `passes` times; the border value holds outside."""
    for _ in range(passes):
        for axis in range(3):
            rows = _box_along(rows, axis, size)
    return rows


def _box_along(rows: Tensor, axis: int, size: int) -> Tensor:
    length, reach = rows.shape[axis], size // 2
    first = rows.narrow(axis, 0, 1).expand(*(reach if a == axis else n for a, n in enumerate(rows.shape)))
    last = rows.narrow(axis, length - 1, 1).expand_as(first)
    padded = torch.cat([first, rows, last], axis)
    total = padded.narrow(axis, 0, length) + padded.narrow(axis, 1, length)
    for step in range(2, size):
        total += padded.narrow(axis, step, length)
    return total.div_(size)


def slopes(rows: Tensor) -> list[Tensor]:
    """Central differences along the three axes of (D,H,W,C), one-sided at the border."""
    result = []
    for axis in range(3):
        n = rows.shape[axis]
        slope = torch.empty_like(rows)
        torch.sub(rows.narrow(axis, 2, n - 2), rows.narrow(axis, 0, n - 2), out=slope.narrow(axis, 1, n - 2))
        slope.narrow(axis, 1, n - 2).mul_(0.5)
        slope.narrow(axis, 0, 1).copy_(rows.narrow(axis, 1, 1) - rows.narrow(axis, 0, 1))
        slope.narrow(axis, n - 1, 1).copy_(rows.narrow(axis, n - 1, 1) - rows.narrow(axis, n - 2, 1))
        result.append(slope)
    return result
