"""How a field changes volume, and where it folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.resample import CHUNK_VOXELS, readable
from hepalign.transform.displacement import DisplacementField

# Just below 1, for what rounding adds.
SOUND = 0.98


def jacobian_determinants(field: DisplacementField) -> NDArray[np.float32]:
    """det(I + ∂u/∂x) by central differences (one-sided at the border): 1 keeps volume, 0.5 halves it; (D, H, W)."""
    out = np.empty(field.geometry.shape, np.float32)
    for slab, forward, backward in _edge_slabs(field):
        columns = [(f + b) / 2 for f, b in zip(forward, backward, strict=True)]
        out[slab] = _dot(columns[0], _cross(columns[1], columns[2])).numpy()
    return out / np.float32(np.linalg.det(field.geometry.affine[:3, :3]))


def fold_mask(field: DisplacementField) -> NDArray[np.bool_]:
    """Voxels where det(I + ∂u/∂x) ≤ 0 for any of the eight combinations of one-sided differences; (D, H, W).

    Central differences miss checkerboards (Liu et al. 2024, "digital diffeomorphism"); these do not. At the border
    the one side that exists stands for both.
    """
    mask = np.zeros(field.geometry.shape, bool)
    handedness = float(np.sign(np.linalg.det(field.geometry.affine[:3, :3])))
    straight = field.linear[:3, :3] @ field.geometry.affine[:3, :3]
    upright = np.linalg.det(straight) * handedness > 0
    for slab, forward, backward in _edge_slabs(field):
        doubtful = ~_surely_sound(forward, backward, straight) if upright else torch.ones(forward[0].shape[1:]).bool()
        if not doubtful.any():
            continue
        ahead, behind = ([edge[:, doubtful] for edge in edges] for edges in (forward, backward))
        folded = torch.zeros(ahead[0].shape[1:], dtype=torch.bool)
        for along_j, along_k in product((ahead[1], behind[1]), (ahead[2], behind[2])):
            normal = _cross(along_j, along_k)
            for along_i in (ahead[0], behind[0]):
                folded |= _dot(along_i, normal) * handedness <= 0
        mask[slab][doubtful.numpy()] = folded.numpy()
    return mask


def _surely_sound(forward: list[Tensor], backward: list[Tensor], straight: NDArray[np.float64]) -> Tensor:
    """Which voxels cannot fold, as no edge of theirs lies far from where the linear part puts it; bool (d, H, W).

    With S the edges of the linear part and E what the field adds, det(S + E) keeps the sign of det S while a bound of
    ‖E S⁻¹‖ stays below 1: that of E's columns in edge lengths times the norm of S⁻¹ in them.
    """
    lengths = np.linalg.norm(straight, axis=0)
    slack = float(np.linalg.norm(np.linalg.inv(straight / lengths), 2))
    bend = torch.zeros(forward[0].shape[1:])
    for axis, steps in enumerate(zip(forward, backward, strict=True)):
        edge = torch.tensor(straight[:, axis], dtype=torch.float32).reshape(3, 1, 1, 1)
        squares = [(step - edge).square_().sum(dim=0) for step in steps]
        bend.add_(torch.maximum(*squares), alpha=float(lengths[axis] ** -2))
    return bend.mul_(slack**2) < SOUND


def folding_fraction(field: DisplacementField, where: NDArray[np.bool_] | None = None) -> float:
    """The share of voxels (of those in `where`, (D, H, W) bool) that fold; 0 where there are none to count."""
    folds = fold_mask(field)
    counted = folds if where is None else folds[where]
    return float(counted.mean()) if counted.size else 0.0


# Component by component: each is contiguous here, and torch's own cross product takes them one voxel at a time.


def _cross(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cross product of (3, ...) vectors, by components."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Tensor, b: Sequence[Tensor]) -> Tensor:
    """The inner product of (3, ...) vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _edge_slabs(field: DisplacementField) -> Iterator[tuple[slice, list[Tensor], list[Tensor]]]:
    """Slab by slab, the steps of x + u(x) to the next and from the previous voxel of each axis, each (3, d, H, W).

    Their triple product over det(affine) is the Jacobian determinant, so no voxel needs a matrix inverse.
    """
    depth, height, width = field.geometry.shape
    edges = torch.from_numpy(field.geometry.affine[:3, :3].astype(np.float32))
    step = max(1, CHUNK_VOXELS // (4 * height * width))
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        low, high = max(start - 1, 0), min(stop + 1, depth)
        vectors = readable(np.moveaxis(field.vectors[low:high], -1, 0))
        inner = slice(start - low, stop - low)
        forward, backward = [], []
        for axis in range(3):
            ahead, behind = _one_sided(vectors, axis + 1)
            edge = edges[:, axis].reshape(3, 1, 1, 1)
            forward.append(ahead[:, inner] + edge)
            backward.append(behind[:, inner] + edge)
        yield slice(start, stop), forward, backward


def _one_sided(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Forward and backward differences along `dim`, the border's missing one replaced by the other."""
    size = vectors.shape[dim]
    if size == 1:
        return torch.zeros_like(vectors), torch.zeros_like(vectors)
    steps = vectors.diff(dim=dim)
    first, last = steps.narrow(dim, 0, 1), steps.narrow(dim, size - 2, 1)
    return torch.cat([steps, last], dim=dim), torch.cat([first, steps], dim=dim)
