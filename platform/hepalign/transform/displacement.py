"""A dense displacement field, the linear map that continues it, and its algebra: sample, compose, invert."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hepalign.image.geometry import Geometry
from hepalign.image.trilinear import VoxelMap, read_linear
from hepalign.transform import linear as linear_maps


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """`warped(x) = moving(x + u(x))` for world points x (RAS mm) of the fixed image.

    Args:
        vectors: u in world millimetres (RAS) at the voxels of `geometry`, float32 (D, H, W, 3).
        geometry: the grid of the fixed image (or a coarser one that covers it).
        linear: 4 x 4 world-to-world map (fixed to moving) that the field follows far away: outside its grid the
            field is `linear(x) - x` plus the residual of the nearest border voxel. The identity by default.
    """

    vectors: NDArray[np.float32]
    geometry: Geometry
    linear: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        if self.vectors.shape != (*self.geometry.shape, 3):
            raise ValueError(f"vectors of shape {self.vectors.shape} on a grid of shape {self.geometry.shape}")
        if self.vectors.dtype != np.float32:
            raise ValueError(f"displacements are float32, got {self.vectors.dtype}")
        if self.linear.shape != (4, 4) or not np.isfinite(self.linear).all():
            raise ValueError(f"the linear part is a finite 4 x 4 matrix, got {self.linear.shape}")

    @classmethod
    def identity(cls, geometry: Geometry) -> DisplacementField:
        """The field that moves nothing."""
        return cls(np.zeros((*geometry.shape, 3), np.float32), geometry)

    @classmethod
    def from_linear(cls, matrix: NDArray[np.float64], geometry: Geometry) -> DisplacementField:
        """The field of a 4 x 4 world-to-world map (fixed point to moving point)."""
        vectors = np.empty((*geometry.shape, 3), np.float32)
        # M A i - A i is itself affine in the voxel index i.
        for slab, moved in VoxelMap(geometry.shape, (matrix - np.eye(4)) @ geometry.affine).slabs():
            vectors[slab] = moved.numpy()
        return cls(vectors, geometry, np.array(matrix, dtype=np.float64))


def sample(displacement: DisplacementField, points_mm: ArrayLike) -> NDArray[np.float64]:
    """u at any world points (N, 3), millimetres; outside the grid by the field's continuation."""
    points = np.asarray(points_mm, dtype=np.float64)
    indices = displacement.geometry.world_to_index(points).astype(np.float32)
    return _read(displacement, VoxelMap.of_indices(indices[:, None, None]))[:, 0, 0].astype(np.float64)


def transform_points(displacement: DisplacementField, points_mm: ArrayLike) -> NDArray[np.float64]:
    """Points (N, 3) of the fixed image to where they lie in the moving image: x + u(x)."""
    points = np.asarray(points_mm, dtype=np.float64)
    return points + sample(displacement, points)


def resample_field(displacement: DisplacementField, geometry: Geometry) -> DisplacementField:
    """The same map written on another grid."""
    if displacement.geometry.same_grid(geometry):
        return displacement
    vectors = _read(displacement, VoxelMap.between(displacement.geometry, geometry))
    return DisplacementField(vectors, geometry, displacement.linear)


def compose(outer: DisplacementField, inner: DisplacementField) -> DisplacementField:
    """The map x -> outer(inner(x)) on inner's grid.

    With y = x + u_inner(x) the composed displacement is u_inner(x) + u_outer(y). An image resampled through it is
    interpolated once: guide's φ_pre ∘ φ_intra has outer = φ_pre (pCT to pMR), inner = φ_intra (iCT to pCT).
    """
    vectors = _read(outer, VoxelMap.between(outer.geometry, inner.geometry, inner.vectors))
    vectors += inner.vectors
    return DisplacementField(vectors, inner.geometry, outer.linear @ inner.linear)


# Twenty rounds close a breathing field; the cap is for fields with walls that slide.
INVERSE_ROUNDS = 60
INVERSE_TOLERANCE_MM = 0.01
# A coarse guess is worth its cost from this many voxels along its shortest axis.
_COARSEST = 8


def invert(
    displacement: DisplacementField,
    geometry: Geometry | None = None,
    *,
    tolerance_mm: float = INVERSE_TOLERANCE_MM,
    rounds: int = INVERSE_ROUNDS,
) -> DisplacementField:
    """The inverse map on `geometry` (the moving image's grid; the field's own by default).

    Fixed point (Chen et al. 2008), preconditioned by the affine map nearest to the field so that large rotations
    close as well: x ← x − L⁻¹(φ(x) − y), φ(x) = x + u(x), until no voxel is further than `tolerance_mm` from its y.
    A field that folds has no inverse there; the closest round is kept, voxel by voxel.
    """
    geometry = displacement.geometry if geometry is None else geometry
    back = linear_maps.inverse(nearest_linear(displacement))
    guess = _first_guess(displacement, geometry, back, tolerance_mm, rounds)
    step = torch.from_numpy(np.ascontiguousarray(back[:3, :3].T, dtype=np.float32))
    world_to_index = np.linalg.inv(displacement.geometry.affine)
    turn = torch.from_numpy(np.ascontiguousarray(world_to_index[:3, :3].T, dtype=np.float32))
    for slab, indices in VoxelMap.between(displacement.geometry, geometry).slabs():
        guess[slab] = _solve(
            displacement, indices, torch.from_numpy(guess[slab]), step, turn, tolerance_mm, rounds
        ).numpy()
    return DisplacementField(guess, geometry, linear_maps.inverse(displacement.linear))


def _first_guess(
    displacement: DisplacementField, geometry: Geometry, back: NDArray[np.float64], tolerance_mm: float, rounds: int
) -> NDArray[np.float32]:
    """The inverse from a grid of a quarter the resolution: two rounds instead of ten remain for most voxels."""
    if min(geometry.shape) < 4 * _COARSEST:
        return DisplacementField.from_linear(back, geometry).vectors
    i, j, k = (n // 4 for n in geometry.shape)
    coarse = invert(displacement, geometry.with_shape((i, j, k)), tolerance_mm=tolerance_mm, rounds=rounds)
    return resample_field(coarse, geometry).vectors


def nearest_linear(displacement: DisplacementField) -> NDArray[np.float64]:
    """The affine map (4 x 4) nearest to the field in least squares; its linear part where the grid is flat."""
    strides = tuple(slice(None, None, max(1, n // 12)) for n in displacement.geometry.shape)
    if min(displacement.geometry.shape) < 2:
        return displacement.linear
    grid = np.stack(np.meshgrid(*[np.arange(n)[s] for n, s in zip(displacement.geometry.shape, strides, strict=True)],
                                indexing="ij"), axis=-1)  # fmt: skip
    points = displacement.geometry.index_to_world(grid).reshape(-1, 3)
    return linear_maps.fit_affine(points, points + displacement.vectors[strides].reshape(-1, 3))


def _solve(
    displacement: DisplacementField,
    indices: Tensor,
    guess: Tensor,
    step: Tensor,
    turn: Tensor,
    tolerance_mm: float,
    rounds: int,
) -> Tensor:
    """The v with v + u(y + v) = 0 at voxels y, given as indices (d, h, w, 3) of the field's grid."""
    shape = guess.shape
    indices, moving = indices.reshape(-1, 3), guess.reshape(-1, 3).clone()
    best, best_error = moving.clone(), torch.full((len(moving),), torch.inf)
    active = torch.arange(len(moving))
    for number in range(rounds):
        here = moving[active]
        places = (indices[active] + here @ turn)[:, None, None]
        residual = here + torch.from_numpy(_read(displacement, VoxelMap.of_indices(places.numpy())))[:, 0, 0]
        error = residual.norm(dim=1)
        better = error < best_error[active]
        best[active[better]], best_error[active[better]] = here[better], error[better]
        # Where the field is strong a whole step goes past its goal, for ever: a half or a quarter does not.
        moving[active] = here - 0.5 ** (3 * number // rounds) * (residual @ step)
        active = active[error > tolerance_mm]
        if len(active) == 0:
            break
    return best.reshape(shape)


def _read(displacement: DisplacementField, places: VoxelMap) -> NDArray[np.float32]:
    """u in mm at places of its grid: linear inside; outside the border's residual on the linear part."""
    vectors = np.empty((*places.shape, 3), np.float32)
    growth = (displacement.linear[:3, :3] - np.eye(3)) @ displacement.geometry.affine[:3, :3]
    read_linear(displacement.vectors, places, vectors, growth=growth.T.astype(np.float32))
    return vectors
