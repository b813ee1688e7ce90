"""How a field changes volume, and where it folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hepalign.image.trilinear import CHUNK_VOXELS, readable
from hepalign.transform.displacement import DisplacementField

# Just below 1, for what rounding adds.
SOUND = 0.98


def jacobian_determinants(field: DisplacementField) -> NDArray[np.float32]:
    """det(I + ∂u/∂x) by central differences (one-sided at the border): 1 keeps volume, 0.5 halves it; (D, H, W)."""
    out = np.empty(field.geometry.shape, np.float32)
    voxel_mm3 = float(np.linalg.det(field.geometry.affine[:3, :3]))
    for slab, edges in _edge_slabs(field):
        columns = [(ahead + behind) / 2 for ahead, behind in (edges.both_sides(axis) for axis in range(3))]
        out[slab] = (_dot(columns[0], _cross(columns[1], columns[2])) / voxel_mm3).numpy()
    return out


def fold_mask(field: DisplacementField) -> NDArray[np.bool_]:
    """Voxels where det(I + ∂u/∂x) ≤ 0 for any of the eight combinations of one-sided differences; (D, H, W).

    Central differences miss checkerboards (Liu et al. 2024, "digital diffeomorphism"); these do not. At the border
    the one side that exists stands for both.
    """
    mask = np.zeros(field.geometry.shape, bool)
    handedness = float(np.sign(np.linalg.det(field.geometry.affine[:3, :3])))
    straight = field.linear[:3, :3] @ field.geometry.affine[:3, :3]
    upright = np.linalg.det(straight) * handedness > 0
    for slab, edges in _edge_slabs(field):
        doubtful = ~edges.surely_sound(straight) if upright else torch.ones(mask[slab].shape, dtype=torch.bool)
        if not doubtful.any():
            continue
        i, j, k = ([side[:, doubtful] for side in edges.both_sides(axis)] for axis in range(3))
        folded = torch.zeros(i[0].shape[1:], dtype=torch.bool)
        for along_j, along_k in product(j, k):
            normal = _cross(along_j, along_k)
            for along_i in i:
                folded |= _dot(along_i, normal) * handedness <= 0
        mask[slab][doubtful.numpy()] = folded.numpy()
    return mask


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


def _edge_slabs(field: DisplacementField) -> Iterator[tuple[slice, _Edges]]:
    depth, height, width = field.geometry.shape
    step = max(1, CHUNK_VOXELS // (4 * height * width))
    for start in range(0, depth, step):
        slab = slice(start, min(start + step, depth))
        yield slab, _Edges(field, slab)


class _Edges:
    """The steps of x + u(x) from voxel to voxel in a slab of the first axis.

    The triple product of three of them over det(affine) is a Jacobian determinant, so no voxel needs a matrix inverse.
    """

    def __init__(self, field: DisplacementField, slab: slice) -> None:
        low, high = max(slab.start - 1, 0), min(slab.stop + 1, field.geometry.shape[0])
        self._vectors = readable(np.moveaxis(field.vectors[low:high], -1, 0))
        self._inner = slice(slab.start - low, slab.stop - low)
        self._affine = field.geometry.affine[:3, :3]

    def both_sides(self, axis: int) -> tuple[Tensor, Tensor]:
        """The steps to the next and from the previous voxel, each (3, d, H, W)."""
        return self._ahead_and_behind(self._steps(axis, self._affine), axis)

    def surely_sound(self, straight: NDArray[np.float64]) -> Tensor:
        """Which voxels cannot fold, as no edge of theirs lies far from where the linear part puts it; bool (d, H, W).

        With S the edges of the linear part and E what the field adds, det(S + E) keeps the sign of det S while a bound
        of ‖E S⁻¹‖ stays below 1: that of E's columns in edge lengths times the norm of S⁻¹ in them.
        """
        lengths = np.linalg.norm(straight, axis=0)
        slack = float(np.linalg.norm(np.linalg.inv(straight / lengths), 2))
        bend = torch.zeros(self._vectors[0, self._inner].shape)
        for axis in range(3):
            squares = self._steps(axis, self._affine - straight).square_().sum(dim=0, keepdim=True)
            bend.add_(torch.maximum(*self._ahead_and_behind(squares, axis))[0], alpha=float(lengths[axis] ** -2))
        return bend.mul_(slack**2) < SOUND

    def _steps(self, axis: int, affine: NDArray[np.float64]) -> Tensor:
        """u's differences along an axis and the affine's column: one less than there are voxels, but one at least."""
        vectors, dim = self._vectors if axis == 0 else self._vectors[:, self._inner], axis + 1
        differences = vectors.diff(dim=dim) if vectors.shape[dim] > 1 else torch.zeros_like(vectors)
        return differences.add_(torch.from_numpy(affine[:, axis].astype(np.float32)).reshape(3, 1, 1, 1))

    def _ahead_and_behind(self, steps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Each voxel's step to the next and from the previous one, the border's missing one replaced by the other."""
        dim = axis + 1
        if self._vectors.shape[dim] == 1:
            return steps, steps
        first, last = steps.narrow(dim, 0, 1), steps.narrow(dim, steps.shape[dim] - 1, 1)
        ahead, behind = torch.cat([steps, last], dim=dim), torch.cat([first, steps], dim=dim)
        return (ahead[:, self._inner], behind[:, self._inner]) if axis == 0 else (ahead, behind)
