"""A robust rigid, then affine start in a few tenths of a second.

Coarse pyramid: translations by masked correlation over every offset at once (Padfield 2012, doi
10.1109/TIP.2011.2181402) for a handful of orientations; the best few refined rigidly, the winner affinely, by
Gauss-Newton on the sum of squared differences of MIND-SSC and wide-window intensity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import ct_to_unit
from hepalign.image.volume import Volume
from hepalign.inference.workgrid import coarsened
from hepalign.losses.similarity import mind_ssc
from hepalign.transform.linear import about, rotation

SEARCH_SPACING_MM = 14.0
LEVELS_MM = (11.0, 6.0)
# Air, lung, soft tissue and bone all show; dense metal does not dominate.
AFFINE_WINDOW_HU = (-1000.0, 400.0)
MIN_OVERLAP = 0.25
STARTS_KEPT = 3
STEPS = (12, 6)
# Boxes that share less than this part of the smaller one hold different anatomy, or one of them lies elsewhere.
MIN_BOX_OVERLAP = 0.02


@dataclass(frozen=True)
class AffineStart:
    """The matrix (4 x 4, fixed world to moving world) and its similarity (1 is best) before and after."""

    matrix: NDArray[np.float64]
    similarity: float


@dataclass(frozen=True)
class _Level:
    """Features of both images on coarse canonical grids."""

    fixed: Tensor  # [1,C,d,h,w]
    fixed_geometry: Geometry
    weight: Tensor  # [d,h,w]
    moving: Tensor
    moving_geometry: Geometry


def affine_start(
    moving: Volume,
    fixed: Volume,
    *,
    fixed_valid: Volume | None = None,
    window_hu: tuple[float, float] | None = AFFINE_WINDOW_HU,
) -> AffineStart:
    """Align `moving` to `fixed` by an affine map.

    Args:
        moving: CT in HU (or any unit-scaled image with `window_hu` None).
        fixed: the same.
        fixed_valid: where the fixed image may be trusted (not metal, not artefact); on any grid of the same box.
        window_hu: the intensity window of both.

    Raises:
        BadInputError: `no_overlap` when the two fields of view do not meet.
    """
    require_overlap(moving.geometry, fixed.geometry)
    levels = [_level(moving, fixed, fixed_valid, spacing, window_hu) for spacing in LEVELS_MM]
    starts = _search(moving, fixed, window_hu)
    refined = [_gauss_newton(levels[0], start, steps=STEPS[0], rigid=True) for start in starts]
    best, _ = min(refined, key=lambda item: item[1])
    best, _ = _gauss_newton(levels[1], best, steps=STEPS[1], rigid=True)
    best, cost = _gauss_newton(levels[1], best, steps=STEPS[1], rigid=False)
    return AffineStart(best, 1.0 - cost)


def require_overlap(moving: Geometry, fixed: Geometry) -> None:
    """Refuse two images whose boxes (hardly) meet in the world."""
    lows, highs = zip(*((g.corners_mm().min(0), g.corners_mm().max(0)) for g in (moving, fixed)), strict=True)
    shared = np.minimum(*highs) - np.maximum(*lows)
    smaller = min(float(np.prod(high - low)) for low, high in zip(lows, highs, strict=True))
    if (shared <= 0).any() or shared.prod() < MIN_BOX_OVERLAP * smaller:
        raise BadInputError(
            "the two images lie apart in the world: their fields of view share nothing to register; check that they "
            "belong together and carry the right orientation",
            code="no_overlap",
        )


def _unit(volume: Volume, spacing_mm: float, window_hu: tuple[float, float] | None) -> tuple[Tensor, Geometry]:
    coarse = coarsened(volume, spacing_mm)
    data = torch.from_numpy(np.ascontiguousarray(coarse.data, dtype=np.float32))[None, None]
    return (data if window_hu is None else ct_to_unit(data, window_hu)), coarse.geometry


def _level(
    moving: Volume, fixed: Volume, valid: Volume | None, spacing_mm: float, window_hu: tuple[float, float] | None
) -> _Level:
    fixed_unit, fixed_geometry = _unit(fixed, spacing_mm, window_hu)
    moving_unit, moving_geometry = _unit(moving, spacing_mm, window_hu)
    weight = (fixed_unit > -0.6).float()
    weight = F.max_pool3d(weight, 3, stride=1, padding=1)
    if valid is not None:
        trusted, _ = _unit(valid, spacing_mm, None)
        weight = weight * F.interpolate(trusted, size=weight.shape[2:], mode="trilinear", align_corners=False)
    return _Level(_features(fixed_unit), fixed_geometry, weight[0, 0], _features(moving_unit), moving_geometry)


def _features(unit: Tensor) -> Tensor:
    return torch.cat([mind_ssc(unit), unit], 1)


def _search(moving: Volume, fixed: Volume, window_hu: tuple[float, float] | None) -> list[NDArray[np.float64]]:
    """The best starts over orientations x every translation, by masked correlation at a very coarse level."""
    fixed_unit, grid = _unit(fixed, SEARCH_SPACING_MM, window_hu)
    moving_unit, moving_grid = _unit(moving, SEARCH_SPACING_MM, window_hu)
    # a common isotropic grid wide enough for both boxes
    spacing = SEARCH_SPACING_MM
    extent = max(*fixed.geometry.extent_mm, *moving.geometry.extent_mm)
    side = int(np.ceil(extent * 1.3 / spacing))
    cube = Geometry.from_spacing((side,) * 3, spacing)
    target, target_mask = _resampled(fixed_unit, grid, _centred(cube, grid.centre_mm), np.eye(4))
    found: list[tuple[float, NDArray[np.float64]]] = []
    for turn in _ORIENTATIONS_DEG:
        base = rotation(turn, grid.centre_mm)
        base[:3, 3] += moving_grid.centre_mm - grid.centre_mm
        source, source_mask = _resampled(moving_unit, moving_grid, _centred(cube, grid.centre_mm), base)
        score, shift = _best_translation(target, target_mask, source, source_mask)
        # source(x + shift) matches target(x): moving point = base(x + shift)
        step = np.eye(4)
        step[:3, 3] = np.asarray(shift) * spacing
        found.append((score, base @ step))
    found.sort(key=lambda item: -item[0])
    return [matrix for _, matrix in found[:STARTS_KEPT]]


_ORIENTATIONS_DEG = (
    (0, 0, 0), (0, 0, 15), (0, 0, -15), (15, 0, 0), (-15, 0, 0), (0, 15, 0), (0, -15, 0),
    (0, 0, 40), (0, 0, -40), (0, 0, 90), (0, 0, -90), (0, 0, 180),
)  # fmt: skip


def _centred(cube: Geometry, centre_mm: NDArray[np.float64]) -> Geometry:
    affine = cube.affine.copy()
    affine[:3, 3] += centre_mm - cube.centre_mm
    return Geometry(cube.shape, affine)


def _resampled(unit: Tensor, grid: Geometry, onto: Geometry, matrix: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """unit(matrix(x)) at the voxels of `onto`, and where that lies inside."""
    index = torch.from_numpy((np.linalg.inv(grid.affine) @ matrix @ onto.affine)[:3].astype(np.float32))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in onto.shape), indexing="ij")
    points = torch.stack(axes, -1) @ index[:, :3].T + index[:, 3]
    size = torch.tensor(unit.shape[2:], dtype=torch.float32)
    unit_points = ((points * 2 + 1) / size - 1).flip(-1)[None]
    inside = (unit_points.abs().amax(-1) <= 1).float()[0]
    values = F.grid_sample(unit, unit_points, padding_mode="border", align_corners=False)[0, 0]
    return values * inside, inside


def _best_translation(a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> tuple[float, tuple[int, int, int]]:
    """The shift t that maximises the masked correlation of a(x) and b(x + t)."""
    size = [2 * n for n in a.shape]

    def transform(x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, s=size)

    def correlate(x: Tensor, y: Tensor) -> Tensor:
        return torch.fft.irfftn(x.conj() * y, s=size)

    fa, fam, fb, fbm = (transform(x) for x in (a, a_mask, b, b_mask))
    count = correlate(fam, fbm).clamp_min(1e-3)
    a_sum, b_sum = correlate(fa, fbm), correlate(fam, fb)
    cross = correlate(fa, fb) - a_sum * b_sum / count
    a_var = (correlate(transform(a * a), fbm) - a_sum * a_sum / count).clamp_min(1e-3)
    b_var = (correlate(fam, transform(b * b)) - b_sum * b_sum / count).clamp_min(1e-3)
    score = cross / (a_var * b_var).sqrt()
    enough = MIN_OVERLAP * min(float(a_mask.sum()), float(b_mask.sum()))
    # a mild preference for overlap: two strips of air correlate perfectly
    score = torch.where(count > enough, score * (count / count.max()).clamp(0, 1) ** 0.25, score.new_tensor(-1.0))
    best = int(score.argmax())
    shift = np.unravel_index(best, tuple(score.shape))
    i, j, k = (int(s) if s < n // 2 else int(s) - n for s, n in zip(shift, size, strict=True))
    return float(score.flatten()[best]), (i, j, k)


def _gauss_newton(
    level: _Level, matrix: NDArray[np.float64], *, steps: int, rigid: bool
) -> tuple[NDArray[np.float64], float]:
    """Minimise Σ w |F(x) − M(T x)|² over T; returns the matrix and its mean cost."""
    keep = (level.weight > 0.05).nonzero()
    weight = level.weight[keep[:, 0], keep[:, 1], keep[:, 2]].double()
    target = level.fixed[0][:, keep[:, 0], keep[:, 1], keep[:, 2]].T  # N C
    world = level.fixed_geometry.index_to_world(keep.numpy())
    centre = world.mean(0)
    slopes = torch.stack(torch.gradient(level.moving[0], dim=(1, 2, 3)), 1).flatten(0, 1)  # 3C
    volume = torch.cat([level.moving[0], slopes])[None]
    channels = level.moving.shape[1]
    to_index = np.linalg.inv(level.moving_geometry.affine)
    best, best_cost, damping = matrix, np.inf, 1e-3
    current = matrix
    for _ in range(steps + 1):
        points = world @ current[:3, :3].T + current[:3, 3]
        sampled, inside = _sample(volume, points @ to_index[:3, :3].T + to_index[:3, 3])
        residual = (target - sampled[:, :channels]).double()
        w = weight * inside
        overlap = float(w.sum() / weight.sum())
        cost = float((w[:, None] * residual.square()).sum() / w.sum().clamp_min(1e-6)) / channels
        cost += 0.2 * max(0.0, 0.5 - overlap)
        if cost < best_cost:
            best, best_cost, damping = current, cost, max(damping / 3, 1e-5)
        else:
            current, damping = best, damping * 10
            if damping > 1:
                break
        slope = sampled[:, channels:].reshape(-1, channels, 3).double() @ torch.from_numpy(to_index[:3, :3])
        hessian3 = torch.einsum("nci,ncj,n->nij", slope, slope, w)
        pull3 = torch.einsum("nci,nc,n->ni", slope, residual, w)
        delta = _solve(
            hessian3, pull3, torch.from_numpy(points - (current[:3, :3] @ centre + current[:3, 3])), rigid, damping
        )
        moved_centre = current[:3, :3] @ centre + current[:3, 3]
        if rigid:
            step = rotation(np.rad2deg(delta[:3]), moved_centre)
        else:
            step = about(np.eye(3) + delta[:9].reshape(3, 3), moved_centre)
        step[:3, 3] += delta[-3:]
        current = step @ best
    return best, best_cost


def _solve(hessian3: Tensor, pull3: Tensor, points: Tensor, rigid: bool, damping: float) -> NDArray[np.float64]:
    """The damped normal equations of 6 or 12 parameters from each point's 3 x 3 share."""
    n = len(points)
    eye = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    if rigid:
        x, y, z = points.unbind(1)
        zero = torch.zeros_like(x)
        turn = torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], 1).reshape(n, 3, 3)
        basis = torch.cat([turn, eye], 2)
    else:
        basis = torch.cat(
            [torch.einsum("ij,nk->nijk", torch.eye(3, dtype=torch.float64), points).reshape(n, 3, 9), eye], 2
        )
    normal = torch.einsum("nip,nij,njq->pq", basis, hessian3, basis)
    right = torch.einsum("nip,ni->p", basis, pull3)
    normal += damping * torch.diag(normal.diag() + 1e-9)
    solution: NDArray[np.float64] = torch.linalg.solve(normal, right).numpy()
    return solution


def _sample(volume: Tensor, indices: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Values (N, C) at continuous voxel indices (N, 3), and 1 where they lie inside."""
    size = torch.tensor(volume.shape[2:], dtype=torch.float32)
    points = ((torch.from_numpy(indices).float() * 2 + 1) / size - 1).flip(-1)
    inside = (points.abs().amax(-1) <= 1).double()
    values = F.grid_sample(volume, points[None, :, None, None], padding_mode="border", align_corners=False)
    return values[0, :, :, 0, 0].T, inside
