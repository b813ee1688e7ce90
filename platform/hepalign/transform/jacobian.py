"""How a field changes volume, and where it folds."""

from __future__ import annotations

from collections.abc import Iterator
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
        out[slab] = _triple(*columns).numpy()
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
        if upright and _surely_sound(forward, backward, straight):
            continue
        folded = torch.zeros(forward[0].shape[1:], dtype=torch.bool)
        for along_j, along_k in product((forward[1], backward[1]), (forward[2], backward[2])):
            normal = torch.linalg.cross(along_j, along_k, dim=0)
            for along_i in (forward[0], backward[0]):
                folded |= (along_i * normal).sum(dim=0) * handedness <= 0
        mask[slab] = folded.numpy()
    return mask


def _surely_sound(forward: list[Tensor], backward: list[Tensor], straight: NDArray[np.float64]) -> bool:
    """Whether no voxel can fold, as no edge lies far from where the linear part puts it.

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
    return float(bend.max()) * slack**2 < SOUND


def folding_fraction(field: DisplacementField, where: NDArray[np.bool_] | None = None) -> float:
    """The share of voxels (of those in `where`, (D, H, W) bool) that fold; 0 where there are none to count."""
    folds = fold_mask(field)
    counted = folds if where is None else folds[where]
    return float(counted.mean()) if counted.size else 0.0


def _triple(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    determinant: Tensor = (a * torch.linalg.cross(b, c, dim=0)).sum(dim=0)
    return determinant


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
