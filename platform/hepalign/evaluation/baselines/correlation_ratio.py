"""`flirt-cr`: rigid registration by the correlation ratio with FLIRT's schedule.

Own implementation of the search that Jenkinson & Smith (2001) and Jenkinson et al. (2002, doi
10.1006/nimg.2002.1132) describe; FSL itself is not free for commerce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize

from hepalign.evaluation.baselines.problem import Problem
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import rotation

BINS = 256
SEARCH_MM, LEVELS_MM = 8.0, (4.0, 2.0)
COARSE_DEG, FINE_DEG, SEARCH_RANGE_DEG = 60.0, 18.0, 90.0
STARTS_KEPT = 3
# The best starts are perturbed by half a fine step in each rotation.
PERTURBATION_DEG = FINE_DEG / 2
# Samples fade out over the last voxel before the border, so that the cost does not jump as they leave.
APODISATION_MM = 4.0
FEWEST_SHARE = 0.2
MOST_SAMPLES = 20_000


@dataclass(frozen=True, eq=False)
class Level:
    """Both images at one scale: sampled fixed points and a smoothed moving image."""

    points_mm: NDArray[np.float64]
    bins: NDArray[np.int64]
    moving: NDArray[np.float32]
    geometry: Geometry

    def cost(self, matrix: NDArray[np.float64]) -> float:
        """1 − η(moving | fixed's bins): 0 where the fixed intensity explains the moving one fully.

        Source: Roche et al. 1998; apodised overlap after Jenkinson et al. 2002. Too small an overlap costs 1.
        """
        index = self.geometry.world_to_index(self.points_mm @ matrix[:3, :3].T + matrix[:3, 3])
        last = np.asarray(self.geometry.shape) - 1
        inside_mm = np.minimum(index, last - index).min(axis=1) * min(self.geometry.spacing_mm)
        weight = np.clip(inside_mm / APODISATION_MM, 0, 1)
        if weight.sum() < FEWEST_SHARE * len(weight):
            return 1.0
        values = ndimage.map_coordinates(self.moving, index.T, order=1, mode="nearest").astype(np.float64)
        return correlation_ratio_cost(self.bins, values, weight)


def correlation_ratio_cost(bins: NDArray[np.int64], values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Within-bin variance of `values` over their whole variance, weighted; 0 (explained) … 1 (unrelated)."""
    count = np.bincount(bins, weight, BINS)
    first = np.bincount(bins, weight * values, BINS)
    total = weight.sum()
    mean = first.sum() / total
    whole = float((weight * (values - mean) ** 2).sum())
    if whole <= 0:
        return 1.0
    filled = count > 0
    between = float((first[filled] ** 2 / count[filled]).sum() - total * mean**2)
    return 1.0 - between / whole


def flirt_cr(problem: Problem) -> DisplacementField:
    """Search at 8 mm (coarse 60°, fine 18°, ±90° about each axis), best three and the start refined at 4, then 2 mm."""
    centre = problem.fixed.geometry.centre_mm
    search = _level(problem, SEARCH_MM)
    starts = _search(search, centre)
    level = _level(problem, LEVELS_MM[0])
    tried = [parameters for start in starts for parameters in _perturbed(start)]
    refined = [_refine(level, centre, parameters, iterations=1) for parameters in tried]
    best = min(refined, key=lambda found: found[1])[0]
    for spacing_mm in LEVELS_MM:
        best, _ = _refine(_level(problem, spacing_mm), centre, best, iterations=6)
    return DisplacementField.from_linear(_matrix(best, centre), problem.fixed.geometry)


def _search(level: Level, centre: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Translations are optimised at the coarse rotations and interpolated (nearest) onto the fine ones."""
    coarse = np.arange(-SEARCH_RANGE_DEG, SEARCH_RANGE_DEG + 1, COARSE_DEG)
    fine = np.arange(-SEARCH_RANGE_DEG, SEARCH_RANGE_DEG + 1, FINE_DEG)
    found = [_translated(level, centre, np.array([*turn, 0.0, 0.0, 0.0])) for turn in product(coarse, repeat=3)]
    table = np.array([parameters for parameters, _ in found])
    scored = []
    for turn in product(fine, repeat=3):
        nearest = int(np.abs(table[:, :3] - turn).sum(axis=1).argmin())
        parameters = np.array([*turn, *table[nearest, 3:]])
        scored.append((level.cost(_matrix(parameters, centre)), parameters))
    scored.sort(key=lambda pair: pair[0])
    kept: list[NDArray[np.float64]] = [np.zeros(6)]
    for _, parameters in scored:
        if all(np.abs(parameters[:3] - k[:3]).max() > FINE_DEG / 2 for k in kept[1:]):
            kept.append(parameters)
        if len(kept) > STARTS_KEPT:
            break
    return [_refine(level, centre, parameters, iterations=2)[0] for parameters in kept]


def _perturbed(start: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    offsets = [np.zeros(6)]
    for axis, sign in product(range(3), (-1.0, 1.0)):
        offset = np.zeros(6)
        offset[axis] = sign * PERTURBATION_DEG
        offsets.append(offset)
    return [start + offset for offset in offsets]


def _translated(
    level: Level, centre: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    return _minimised(
        lambda shift: level.cost(_matrix(np.array([*start[:3], *shift]), centre)), start[3:], (20.0,) * 3, 1, start[:3]
    )


def _refine(
    level: Level, centre: NDArray[np.float64], start: NDArray[np.float64], iterations: int
) -> tuple[NDArray[np.float64], float]:
    steps = (4.0, 4.0, 4.0, 6.0, 6.0, 6.0)
    return _minimised(lambda p: level.cost(_matrix(p, centre)), start, steps, iterations, np.empty(0))


def _minimised(
    cost: Callable[[NDArray[np.float64]], float],
    start: NDArray[np.float64],
    steps: Sequence[float],
    iterations: int,
    prefix: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float]:
    """Powell's line searches, one parameter after the other, as FLIRT does."""
    result = minimize(
        cost,
        start,
        method="Powell",
        bounds=None,
        options={"maxiter": iterations, "xtol": 0.03, "ftol": 1e-4, "direc": np.diag(steps)},
    )
    return np.concatenate([prefix, result.x]), float(result.fun)


def _matrix(parameters: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three rotations (degrees) about the fixed image's middle, then a translation (mm)."""
    matrix = rotation(parameters[:3], centre)
    matrix[:3, 3] += parameters[3:]
    return matrix


def _level(problem: Problem, spacing_mm: float) -> Level:
    fixed, moving = _smoothed(problem.fixed, spacing_mm), _smoothed(problem.moving, spacing_mm)
    stride = [max(1, round(spacing_mm / s)) for s in problem.fixed.geometry.spacing_mm]
    grid = np.meshgrid(*[np.arange(0, n, s) for n, s in zip(fixed.shape, stride, strict=True)], indexing="ij")
    index = np.stack(grid, axis=-1).reshape(-1, 3)
    index = index[problem.valid[tuple(index.T)]]
    # a stride over the list keeps the samples spread evenly and the cost the same from call to call
    index = index[:: max(1, len(index) // MOST_SAMPLES)]
    values = fixed[tuple(index.T)]
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) / max(high - low, 1e-6) * (BINS - 1)).astype(np.int64)
    return Level(problem.fixed.geometry.index_to_world(index), bins, moving, problem.moving.geometry)


def _smoothed(volume: Volume, spacing_mm: float) -> NDArray[np.float32]:
    """Gaussian with a full width at half maximum of one sample spacing."""
    sigma = spacing_mm / 2.355 / np.asarray(volume.geometry.spacing_mm)
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(volume.as_float(), sigma)
    return smooth
