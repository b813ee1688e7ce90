"""A robust rigid, then affine start in a few tenths of a second.

Coarse pyramid: translations by masked correlation over every offset at once (Padfield 2012, doi
10.1109/TIP.2011.2181402) for a handful of orientations; the best few refined rigidly, the winner affinely, by
Gauss-Newton on the sum of squared differences of MIND-SSC and wide-window intensity, plus a little for strain (ADR
0019). Between MR and CT the bodies' outlines are searched with and MIND-SSC alone is compared.
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
from hepalign.image.intensity import MR_BODY_UNIT, SOFT_TISSUE_WINDOW_HU, ct_to_unit, normalise_mr
from hepalign.image.volume import Volume
from hepalign.inference.sampling import Places
from hepalign.inference.workgrid import LEAST_START_SCALE, coarsened, resized, view_scale
from hepalign.losses.similarity import mind_ssc
from hepalign.transform.linear import about, rotation, translation

# Air, lung, soft tissue and bone all show; dense metal does not dominate.
AFFINE_WINDOW_HU = (-1000.0, 400.0)
MIN_OVERLAP = 0.25
STARTS_KEPT = 3
STEPS = (10, 5)
MAX_POINTS = 6_000
# A step that gains less than this share of the cost is the last one.
PLATEAU = 2e-3
# Correlation above which the patient lies as before.
SURE_SCORE = 0.93
# Voxels added around the fixed grid when the moving image is brought onto it.
PADDING = 4
AIR_UNIT = -0.6
# What belongs to the body, roughly: above air and lung.
CT_BODY_HU = -300.0
OUT_OF_VIEW_COST = 0.2
# Cost of a squared strain: a crop that shows little does not say how it is sheared.
STRAIN_COST = 0.1
# Boxes that share less than this part of the smaller one hold different anatomy, or one of them lies elsewhere.
MIN_BOX_OVERLAP = 0.02


@dataclass(frozen=True)
class AffineStart:
    """The matrix (4 x 4, fixed world to moving world) and 1 minus its cost, strain included (1 is best)."""

    matrix: NDArray[np.float64]
    similarity: float


@dataclass(frozen=True)
class _Level:
    """Features of both images at one spacing: the fixed one's at points, the moving one's as a table to read."""

    world: NDArray[np.float64]  # (N,3) points of the fixed image
    target: Tensor  # (N,C)
    weight: Tensor  # (N,1)
    table: Tensor  # (d,h,w,4C+1): moving features, their slopes along its axes, 1 where there is an image
    to_index: NDArray[np.float64]  # moving world to moving voxel, 4 x 4

    def compare(self, points: NDArray[np.float64]) -> tuple[float, Tensor, Tensor]:
        """Cost, weighted residual (N,C; its squares sum to their mean) and slope along the world's axes (N,C,3)."""
        indices = torch.from_numpy(points @ self.to_index[:3, :3].T + self.to_index[:3, 3]).float()
        channels = self.target.shape[1]
        values = Places(indices, self.table.shape).read(self.table)
        counts = (self.weight * values[:, -1:]).clamp_min(0)
        total = float(counts.sum())
        root = (counts / max(total * channels, 1e-6)).sqrt()
        residual = (self.target - values[:, :channels]) * root
        cost = float(residual.square().sum())
        # what slides out of view must not pay
        cost += OUT_OF_VIEW_COST * max(0.0, 0.5 - total / float(self.weight.sum()))
        slope = values[:, channels:-1].reshape(-1, 3, channels) * root[:, None]
        return cost, residual, slope.transpose(1, 2) @ torch.from_numpy(self.to_index[:3, :3]).float()


@dataclass(frozen=True)
class _Pyramid:
    """Voxels of the search, of the rigid fit and of the affine one."""

    search_mm: float = 16.0
    coarse_mm: float = 11.0
    fine_mm: float = 6.0

    @classmethod
    def of(cls, moving: Geometry, fixed: Geometry) -> _Pyramid:
        """For the smaller field of view of the two."""
        scale, whole = view_scale(moving, fixed, LEAST_START_SCALE), cls()
        return cls(scale * whole.search_mm, scale * whole.coarse_mm, scale * whole.fine_mm)


@dataclass(frozen=True)
class _Views:
    """Two images as they are compared, unit-scaled and coarse.

    Args:
        pyramid: how coarse.
        moving: by Gauss-Newton, as MIND-SSC.
        fixed: the same.
        moving_search: by correlation, in the search.
        fixed_search: the same.
        intensity: whether the unit intensities themselves are compared as well, which one modality allows.
        fixed_valid: where the fixed image may be trusted; on any grid of the same box.
    """

    pyramid: _Pyramid
    moving: Volume
    fixed: Volume
    moving_search: Volume
    fixed_search: Volume
    intensity: bool
    fixed_valid: Volume | None

    def features(self, unit: Tensor) -> Tensor:
        """Channels [1,C,D,H,W] of a unit image [1,1,D,H,W]."""
        return torch.cat([mind_ssc(unit), unit], 1) if self.intensity else mind_ssc(unit)


def affine_start(moving: Volume, fixed: Volume, *, fixed_valid: Volume | None = None) -> AffineStart:
    """Align a CT to a CT by an affine map.

    Args:
        moving: HU.
        fixed: HU.
        fixed_valid: where the fixed image may be trusted (not metal, not artefact); on any grid of the same box.

    Raises:
        BadInputError: `no_overlap` when the two fields of view do not meet.
    """
    require_overlap(moving.geometry, fixed.geometry)
    pyramid = _Pyramid.of(moving.geometry, fixed.geometry)
    seen = [_unit_ct(coarsened(image, pyramid.fine_mm), AFFINE_WINDOW_HU) for image in (moving, fixed)]
    return _aligned(_Views(pyramid, seen[0], seen[1], seen[0], seen[1], intensity=True, fixed_valid=fixed_valid))


def affine_start_mr(moving: Volume, fixed: Volume) -> AffineStart:
    """Align an MR to a CT by an affine map, through no synthetic CT, which may be wrong: bodies first, then MIND-SSC.

    Args:
        moving: MR, any unit.
        fixed: HU.

    Raises:
        BadInputError: `no_overlap`, `constant_volume`.
    """
    require_overlap(moving.geometry, fixed.geometry)
    scaled, _ = normalise_mr(moving)
    pyramid = _Pyramid.of(moving.geometry, fixed.geometry)
    mr, ct = (coarsened(image, pyramid.fine_mm) for image in (moving.with_data(scaled), fixed))
    bodies = [_two_valued(mr, MR_BODY_UNIT), _two_valued(ct, CT_BODY_HU)]
    seen = _unit_ct(ct, SOFT_TISSUE_WINDOW_HU)
    return _aligned(_Views(pyramid, mr, seen, bodies[0], bodies[1], intensity=False, fixed_valid=None))


def _unit_ct(volume: Volume, window_hu: tuple[float, float]) -> Volume:
    return volume.with_data(ct_to_unit(volume.as_float(), window_hu))


def _two_valued(volume: Volume, threshold: float) -> Volume:
    return volume.with_data(np.where(volume.as_float() > threshold, np.float32(1), np.float32(-1)))


def _aligned(views: _Views) -> AffineStart:
    starts = _search(views.moving_search, views.fixed_search, views.pyramid.search_mm)
    best = min((_rigid(_Turned.of(views, start), views) for start in starts), key=lambda found: found.cost)
    matrix, _ = _gauss_newton(best.level, best.matrix, steps=STEPS[0], rigid=False)
    fine = _level(best.turned, views.pyramid.fine_mm, views)
    matrix, cost = _gauss_newton(fine, matrix, steps=STEPS[1], rigid=False)
    return AffineStart(best.turned.start @ matrix, 1.0 - cost)


@dataclass(frozen=True)
class _Turned:
    """The moving image already resampled through a start, so that both images' MIND-SSC share their axes."""

    unit: Tensor  # [1,1,d,h,w]
    inside: Tensor
    geometry: Geometry
    start: NDArray[np.float64]

    @classmethod
    def of(cls, views: _Views, start: NDArray[np.float64]) -> _Turned:
        fixed = views.fixed.geometry
        i, j, k = (n + 2 * PADDING for n in fixed.shape)
        onto = fixed.crop((-PADDING, -PADDING, -PADDING), (i, j, k))
        unit, geometry = _coarse(views.moving, views.pyramid.fine_mm)
        values, inside = _resampled(unit, geometry, onto, start)
        return cls(values[None, None], inside[None, None], onto, start)


@dataclass(frozen=True)
class _Rigid:
    """A start refined rigidly at the coarse level."""

    turned: _Turned
    level: _Level
    matrix: NDArray[np.float64]
    cost: float


def _rigid(turned: _Turned, views: _Views) -> _Rigid:
    level = _level(turned, views.pyramid.coarse_mm, views)
    return _Rigid(turned, level, *_gauss_newton(level, np.eye(4), steps=STEPS[0], rigid=True))


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


def _coarse(volume: Volume, spacing_mm: float) -> tuple[Tensor, Geometry]:
    coarse = coarsened(volume, spacing_mm)
    return torch.from_numpy(np.ascontiguousarray(coarse.data, dtype=np.float32))[None, None], coarse.geometry


def _level(turned: _Turned, spacing_mm: float, views: _Views) -> _Level:
    fixed_unit, fixed_geometry = _coarse(views.fixed, spacing_mm)
    weight = F.max_pool3d((fixed_unit > AIR_UNIT).float(), 3, stride=1, padding=1)
    if views.fixed_valid is not None:
        weight = weight * resized(_coarse(views.fixed_valid, spacing_mm)[0], fixed_geometry.shape)
    keep = (weight[0, 0] > 0.05).nonzero()
    keep = keep[:: max(1, len(keep) // MAX_POINTS)]
    at = (keep[:, 0], keep[:, 1], keep[:, 2])
    factor = max(1.0, spacing_mm / views.pyramid.fine_mm)
    i, j, k = (max(1, round(n / factor)) for n in turned.geometry.shape)
    features = views.features(resized(turned.unit, (i, j, k)))[0]
    slopes = torch.gradient(features, dim=(1, 2, 3))
    inside = resized(turned.inside, (i, j, k))[0]
    return _Level(
        world=fixed_geometry.index_to_world(keep.numpy()),
        target=views.features(fixed_unit)[0].permute(1, 2, 3, 0)[at],
        weight=weight[0, 0][at][:, None],
        table=torch.cat([features, *slopes, inside]).permute(1, 2, 3, 0).contiguous(),
        to_index=np.asarray(np.linalg.inv(turned.geometry.with_shape((i, j, k)).affine), dtype=np.float64),
    )


def _search(moving: Volume, fixed: Volume, spacing_mm: float) -> list[NDArray[np.float64]]:
    """The best starts over orientations x every translation, by masked correlation at a very coarse level.

    A patient who lies as before is found at once; only a poor correlation opens the search over orientations.
    """
    fixed_unit, grid = _coarse(fixed, spacing_mm)
    moving_unit, moving_grid = _coarse(moving, spacing_mm)
    extent = max(*grid.extent_mm, *moving_grid.extent_mm)
    cube = _centred(Geometry.from_spacing((int(np.ceil(extent / spacing_mm)),) * 3, spacing_mm), grid)
    target = _Spectra.of(*_resampled(fixed_unit, grid, cube, np.eye(4)))
    found: list[tuple[float, NDArray[np.float64]]] = []
    for turn in _ORIENTATIONS_DEG:
        base = rotation(turn, grid.centre_mm)
        base[:3, 3] += moving_grid.centre_mm - grid.centre_mm
        score, shift = _best_translation(target, _Spectra.of(*_resampled(moving_unit, moving_grid, cube, base)))
        # source(x + shift) matches target(x), and source(x) = moving(base(x))
        found.append((score, base @ translation(np.asarray(shift) * spacing_mm)))
        if score > SURE_SCORE and len(found) == 1:
            break
    found.sort(key=lambda item: -item[0])
    return [matrix for _, matrix in found[:STARTS_KEPT]]


_ORIENTATIONS_DEG = (
    (0, 0, 0), (0, 0, 15), (0, 0, -15), (15, 0, 0), (-15, 0, 0), (0, 15, 0), (0, -15, 0),
    (0, 0, 40), (0, 0, -40), (0, 0, 90), (0, 0, -90), (0, 0, 180),
)  # fmt: skip


def _centred(cube: Geometry, grid: Geometry) -> Geometry:
    affine = cube.affine.copy()
    affine[:3, 3] += grid.centre_mm - cube.centre_mm
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
    return values, inside


@dataclass(frozen=True)
class _Spectra:
    """Fourier transforms of an image, its square and its mask, padded for shifts of up to a half of its size."""

    image: Tensor
    square: Tensor
    mask: Tensor
    size: list[int]
    voxels: float

    @classmethod
    def of(cls, image: Tensor, mask: Tensor) -> _Spectra:
        size = [_fast_length(n + n // 2) for n in image.shape]
        image = image * mask
        spectra = torch.fft.rfftn(torch.stack([image, image * image, mask]), s=size)
        return cls(spectra[0], spectra[1], spectra[2], size, float(mask.sum()))


def _fast_length(n: int) -> int:
    """The next length with only the factors 2, 3 and 5, for which Fourier transforms are quick."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


def _best_translation(a: _Spectra, b: _Spectra) -> tuple[float, tuple[int, int, int]]:
    """The shift t, in voxels, that maximises the masked correlation of a(x) and b(x + t), and that correlation."""
    products = [
        a.mask.conj() * b.mask, a.image.conj() * b.mask, a.mask.conj() * b.image,
        a.image.conj() * b.image, a.square.conj() * b.mask, a.mask.conj() * b.square,
    ]  # fmt: skip
    count, a_sum, b_sum, cross, a_square, b_square = torch.fft.irfftn(torch.stack(products), s=a.size, dim=(1, 2, 3))
    count = count.clamp_min(1e-3)
    cross = cross - a_sum * b_sum / count
    a_var = (a_square - a_sum * a_sum / count).clamp_min(1e-3)
    b_var = (b_square - b_sum * b_sum / count).clamp_min(1e-3)
    correlation = cross / (a_var * b_var).sqrt()
    # a mild preference for overlap: two strips of air correlate perfectly
    score = correlation * (count / count.max()).clamp(0, 1) ** 0.25
    score = torch.where(count > MIN_OVERLAP * min(a.voxels, b.voxels), score, score.new_tensor(-1.0))
    best = int(score.argmax())
    shift = np.unravel_index(best, tuple(score.shape))
    i, j, k = (int(s) if s < n // 2 else int(s) - n for s, n in zip(shift, a.size, strict=True))
    return float(correlation.flatten()[best]), (i, j, k)


def _gauss_newton(
    level: _Level, matrix: NDArray[np.float64], *, steps: int, rigid: bool
) -> tuple[NDArray[np.float64], float]:
    """Minimise the weighted mean of (F(x) − M(T x))² over T, plus what its strain costs; the matrix and that sum."""
    best, best_cost, damping = matrix, np.inf, 1e-3
    current = matrix
    equations: tuple[Tensor, Tensor] | None = None
    for _ in range(steps + 1):
        points = level.world @ current[:3, :3].T + current[:3, 3]
        centre = points.mean(0)
        cost, residual, slope = level.compare(points)
        strained = strain(current)
        cost += STRAIN_COST * float(np.square(strained).sum())
        gained = best_cost - cost
        if gained > 0:
            best, best_cost, damping = current, cost, max(damping / 3, 1e-5)
            normal, right = _normal_equations(slope, residual, torch.from_numpy(points - centre).float(), rigid)
            if not rigid:
                normal[:9, :9] += STRAIN_COST * symmetric_part()
                right[:9] -= STRAIN_COST * torch.from_numpy(strained.flatten())
            equations = normal, right
            best_centre = centre
            if gained < PLATEAU * best_cost:
                break
        else:
            damping *= 10
        assert equations is not None
        delta = _solve(*equations, damping)
        step = rotation(np.rad2deg(delta[:3]), best_centre) if rigid else about(_grown(delta), best_centre)
        step[:3, 3] += delta[-3:]
        current = step @ best
        if damping > 1:
            break
    return best, best_cost


def strain(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(LLᵀ − I) / 2 of a map's linear part L, 3 x 3: none for a rotation (left Cauchy-Green)."""
    found: NDArray[np.float64] = (matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)) / 2
    return found


def symmetric_part() -> Tensor:
    """What a further step (I + δ) L adds to the strain of a nearly rigid L, over δ: (9, 9), both flattened."""
    same = torch.eye(9, dtype=torch.float64)
    return (same + same.reshape(3, 3, 9).transpose(0, 1).reshape(9, 9)) / 2


def _grown(delta: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = np.eye(3) + delta[:9].reshape(3, 3)
    return matrix


def _normal_equations(slope: Tensor, residual: Tensor, points: Tensor, rigid: bool) -> tuple[Tensor, Tensor]:
    """JᵀJ and Jᵀr of 6 (rotation, translation) or 12 (matrix, translation) parameters.

    Args:
        slope: (N,C,3), weighted slope of the moving features along the world's axes.
        residual: (N,C), weighted.
        points: (N,3), about the centre of the step.
        rigid: 6 instead of 12.
    """
    if rigid:
        turned = torch.linalg.cross(points[:, None].expand_as(slope), slope)
        jacobian = torch.cat([turned, slope], 2)
    else:
        jacobian = torch.cat([(slope[..., :, None] * points[:, None, None, :]).flatten(2), slope], 2)
    rows = jacobian.flatten(0, 1)
    return (rows.T @ rows).double(), (rows.T @ residual.flatten()).double()


def _solve(normal: Tensor, right: Tensor, damping: float) -> NDArray[np.float64]:
    solution: NDArray[np.float64] = torch.linalg.solve(
        normal + damping * torch.diag(normal.diag() + 1e-9), right
    ).numpy()
    return solution
