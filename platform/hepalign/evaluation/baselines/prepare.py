"""What every peer gets before it starts: sensible intensities and the best of a few rigid starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.evaluation.baselines.problem import Modality
from hepalign.image.bias import bias_field
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3
from hepalign.transform.linear import rotation

# Air, lung, fat, soft tissue, contrast and bone stay apart; metal and its streaks do not own the histogram.
CT_WINDOW_HU = (-400.0, 400.0)
MR_PERCENTILES = (0.5, 99.5)
START_SPACING_MM = 8.0
START_TURNS_DEG = (0.0, -20.0, 20.0, -40.0, 40.0)
HISTOGRAM_BINS = 32


def prepare(volume: Volume, modality: Modality) -> Volume:
    """CT clipped to −400 … 400 HU; MR bias-corrected (N4) and clipped to its 0.5–99.5 percentiles; float32.

    Both begin at 0, the value that every peer assumes outside an image.
    """
    if modality == "ct":
        return volume.with_data(np.clip(volume.as_float(), *CT_WINDOW_HU) - CT_WINDOW_HU[0])
    corrected = volume.as_float() / bias_field(volume).as_float()
    low, high = np.percentile(corrected, MR_PERCENTILES)
    return volume.with_data((np.clip(corrected, low, max(high, low + 1e-6)) - low).astype(np.float32))


def start(moving: Volume, fixed: Volume, valid: Mask3) -> NDArray[np.float64]:
    """The rigid map (4 x 4, fixed point to moving point, world mm) that every peer starts from.

    Of three translations (none, the grids' middles, the bodies' centres of mass) times five turns about the long
    axis (a patient may lie on a side), the one with the highest normalised mutual information (Studholme) at about
    8 mm: no peer fails only because two scanners count from different origins.
    """
    stride = [max(1, round(START_SPACING_MM / s)) for s in fixed.geometry.spacing_mm]
    axes = [np.arange(0, n, s) for n, s in zip(fixed.data.shape, stride, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    index = index[valid[tuple(index.T)]]
    points_mm, values = fixed.geometry.index_to_world(index), np.asarray(fixed.data[tuple(index.T)], np.float64)
    smooth = ndimage.gaussian_filter(moving.as_float(), START_SPACING_MM / 2 / np.asarray(moving.geometry.spacing_mm))
    best, best_score = np.eye(4), -1.0
    for matrix in _candidates(moving, fixed):
        where = moving.geometry.world_to_index(points_mm @ matrix[:3, :3].T + matrix[:3, 3])
        sampled = ndimage.map_coordinates(smooth, where.T, order=1, mode="constant", cval=smooth.min())
        score = _normalised_mutual_information(values, sampled.astype(np.float64))
        if score > best_score:
            best, best_score = matrix, score
    return best


def _candidates(moving: Volume, fixed: Volume) -> Iterator[NDArray[np.float64]]:
    body_mm = _centre_of_mass_mm(fixed)
    shifts = (
        np.zeros(3),
        moving.geometry.centre_mm - fixed.geometry.centre_mm,
        _centre_of_mass_mm(moving) - body_mm,
    )
    for turn_deg in START_TURNS_DEG:
        for shift in shifts:
            matrix = rotation((0.0, 0.0, turn_deg), body_mm)
            matrix[:3, 3] += shift
            yield matrix


def _centre_of_mass_mm(volume: Volume) -> NDArray[np.float64]:
    weight = volume.as_float() - volume.as_float().min()
    if not weight.any():
        return volume.geometry.centre_mm
    return volume.geometry.index_to_world(ndimage.center_of_mass(weight))


def _normalised_mutual_information(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    joint, _, _ = np.histogram2d(a, b, HISTOGRAM_BINS)
    joint /= max(joint.sum(), 1.0)

    def entropy(p: NDArray[np.float64]) -> float:
        positive = p[p > 0]
        return float(-(positive * np.log(positive)).sum())

    together = entropy(joint)
    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / together if together > 0 else 0.0
