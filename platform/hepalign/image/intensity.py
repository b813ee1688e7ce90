"""Voxel values: CT windows, MR normalisation, and where the body is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

# Synthesis keeps air and trabecular bone; registration features look at soft tissue only.
CT_WINDOW_HU = (-1000.0, 1000.0)
SOFT_TISSUE_WINDOW_HU = (-200.0, 300.0)
MR_PERCENTILES = (0.5, 99.5)
BODY_THRESHOLD_HU = -400.0
# Of an MR on [-1, 1]: what is brighter is the patient.
MR_BODY_UNIT = -0.8
# The body is found on a grid this coarse: a couch or a sleeve is thinner than the opening, an arm is not.
BODY_SPACING_MM = 4.0


@overload
def ct_to_unit(hu: Tensor, window_hu: tuple[float, float] = ...) -> Tensor: ...
@overload
def ct_to_unit(hu: NDArray[np.generic], window_hu: tuple[float, float] = ...) -> NDArray[np.float32]: ...
def ct_to_unit(
    hu: Tensor | NDArray[np.generic], window_hu: tuple[float, float] = CT_WINDOW_HU
) -> Tensor | NDArray[np.float32]:
    """Clip HU to `window_hu` and map it linearly onto [-1, 1]; any shape, numpy (to float32) or torch."""
    low, high = window_hu
    scale, shift = 2.0 / (high - low), (high + low) / (high - low)
    if isinstance(hu, Tensor):
        return hu.clip(low, high) * scale - shift
    return np.clip(np.asarray(hu, dtype=np.float32), low, high) * np.float32(scale) - np.float32(shift)


@overload
def unit_to_ct(unit: Tensor, window_hu: tuple[float, float] = ...) -> Tensor: ...
@overload
def unit_to_ct(unit: NDArray[np.generic], window_hu: tuple[float, float] = ...) -> NDArray[np.float32]: ...
def unit_to_ct(
    unit: Tensor | NDArray[np.generic], window_hu: tuple[float, float] = CT_WINDOW_HU
) -> Tensor | NDArray[np.float32]:
    """The inverse of `ct_to_unit` (exact for HU inside the window)."""
    low, high = window_hu
    half = (high - low) / 2.0
    if isinstance(unit, Tensor):
        return (unit + 1.0) * half + low
    return (np.asarray(unit, dtype=np.float32) + np.float32(1.0)) * np.float32(half) + np.float32(low)


@dataclass(frozen=True)
class MrScale:
    """The linear map of one MR image onto [-1, 1]: `low` goes to -1, `high` to 1, what lies beyond is clipped."""

    low: float
    high: float

    def apply(self, data: NDArray[np.generic]) -> NDArray[np.float32]:
        """Scanner units to [-1, 1], float32."""
        unit = (np.asarray(data, dtype=np.float32) - self.low) * (2.0 / (self.high - self.low)) - 1.0
        return np.asarray(np.clip(unit, -1.0, 1.0), dtype=np.float32)

    def inverse(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """[-1, 1] back to scanner units (exact for what was not clipped)."""
        scanner: NDArray[np.float32] = ((unit + 1.0) * ((self.high - self.low) / 2.0) + self.low).astype(np.float32)
        return scanner


def normalise_mr(volume: Volume) -> tuple[NDArray[np.float32], MrScale]:
    """Map an MR volume onto [-1, 1] by the 0.5th and 99.5th percentile of its foreground.

    The foreground is what lies above the mean: background air would otherwise set the scale.

    Returns:
        (D, H, W) float32 in [-1, 1], and the scale with its inverse.

    Raises:
        BadInputError: `constant_volume` when there is nothing to scale.
    """
    data = volume.as_float()
    foreground = data[data > data.mean(dtype=np.float64)]
    if foreground.size == 0:
        raise BadInputError("the MR volume holds one value everywhere; send the image itself", code="constant_volume")
    low = float(np.percentile(data, MR_PERCENTILES[0]))
    high = float(np.percentile(foreground, MR_PERCENTILES[1]))
    scale = MrScale(low, high if high > low else float(data.max()))
    return scale.apply(data), scale


def as_stored_ct(volume: Volume) -> Volume:
    """HU rounded to int16: a quarter of the bytes, and what scanners store."""
    return volume.with_data(np.clip(np.rint(np.asarray(volume.data)), -32768, 32767).astype(np.int16))


def axial_axis(geometry: Geometry) -> int:
    """The array axis that runs most nearly from feet to head."""
    return int(np.argmax(np.abs(geometry.direction[2])))


def body_mask(ct: Volume) -> Volume:
    """The patient in a CT: the largest thing denser than air, its lungs and bowel gas filled, the couch left out.

    Args:
        ct: HU, any grid.

    Returns:
        bool, on the grid of `ct`.
    """
    fine = resample(coarse_body_mask(ct), ct.geometry)
    return fine.with_data(fine.as_mask())


def coarse_body_mask(ct: Volume) -> Volume:
    """`body_mask` where it is found: 0 or 1 as float32, on a grid of at least `BODY_SPACING_MM`."""
    return _largest_body(ct, BODY_THRESHOLD_HU)


def mr_body_mask(mr: Volume) -> Volume:
    """The patient in an MR: the largest thing brighter than air, what is dark within it filled; bool, on its grid.

    Raises:
        BadInputError: `constant_volume`.
    """
    scaled, _ = normalise_mr(mr)
    fine = resample(_largest_body(mr.with_data(scaled), MR_BODY_UNIT), mr.geometry)
    return fine.with_data(fine.as_mask())


def _largest_body(volume: Volume, threshold: float) -> Volume:
    factor = np.maximum(BODY_SPACING_MM / np.asarray(volume.geometry.spacing_mm), 1.0)
    shape = np.maximum(np.round(np.asarray(volume.geometry.shape) / factor), 1).astype(int)
    coarse = resample(volume, volume.geometry.with_shape((int(shape[0]), int(shape[1]), int(shape[2]))))
    dense = np.pad(np.asarray(coarse.data) > threshold, 2, mode="edge")
    opened = ndimage.binary_opening(dense, ndimage.generate_binary_structure(3, 1))
    labels, count = ndimage.label(opened[2:-2, 2:-2, 2:-2])
    if count == 0:
        return coarse.with_data(np.zeros(coarse.geometry.shape, np.float32))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = labels == sizes.argmax()
    for plane in np.moveaxis(body, axial_axis(coarse.geometry), 0):
        plane[...] = ndimage.binary_fill_holes(plane)
    return coarse.with_data(body.astype(np.float32))
