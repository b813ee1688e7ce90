"""A real CT made ready to be imaged again: denoised, its body and the wall along which organs slide found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.cases.labels import label_onto
from hepalign.cases.phantom.lattice import Lattice
from hepalign.cases.sources.denoise import denoise
from hepalign.errors import BadInputError
from hepalign.image.checks import check_ct
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import body_mask
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = NDArray[np.float64]

AIR_HU = -1000.0
WORKING_SHARE = 0.6
SKIN_MARGIN_MM = 4.0
DISTANCE_STEP_MM = 5.0
# How far the wall lies under the skin, what of the liver's surroundings slides with it, and what is bone.
WALL_DEPTH_MM, AROUND_LIVER_MM, BONE_HU = 28.0, 9.0, 250.0
BEYOND_SCAN = 12


@dataclass(frozen=True, eq=False)
class Body:
    """Where the patient is in a CT: mask, middle of its box (world mm) and larger axial measure."""

    mask: Volume
    middle: Point
    width_mm: float


@dataclass(frozen=True, eq=False)
class Patient:
    """A person known from one CT, in a frame whose origin is the liver's middle.

    Args:
        ct: denoised HU, isotropic, the couch taken away.
        liver: mask, or what stands for one.
        tumour: labels or None.
        body: signed distance of the skin.
        cavity: signed distance of the wall along which the organs can slide.
        centre: the frame's origin, world mm.
    """

    ct: Volume
    liver: Volume
    tumour: Volume | None
    body: Lattice
    cavity: Lattice
    centre: Point


@lru_cache(maxsize=1)  # a cohort is many pairs of one CT
def find_body(ct: Volume) -> Body:
    """The person in a CT.

    Raises:
        BadInputError: `modality_mismatch` and `constant_volume` (`check_ct`), `no_body`.
    """
    check_ct(ct, "the CT")
    mask = body_mask(ct)
    if not mask.as_mask().any():
        raise BadInputError("the CT shows no patient: no body denser than air was found", code="no_body")
    ends = [
        np.flatnonzero(mask.as_mask().any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)
    ]
    points = ct.geometry.index_to_world(np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3))
    return Body(mask, (points.min(0) + points.max(0)) / 2, float(np.ptp(points, axis=0)[:2].max()))


@lru_cache(maxsize=1)
def prepare(ct: Volume, liver: Volume | None, tumour: Volume | None, spacing_mm: float) -> Patient:
    """Denoises a CT for images of a spacing.

    Raises:
        BadInputError: as `find_body`; `empty_label`, `bad_label` and `frame_mismatch` of a mask (`label_onto`).
    """
    found = find_body(ct)
    liver = None if liver is None else label_onto(liver, ct, name="the liver mask")
    tumour = None if tumour is None else label_onto(tumour, ct, name="the tumour mask")
    grid = _working_grid(ct.geometry, spacing_mm)
    smooth = resample(ct.with_data(denoise(ct.as_float(), ct.geometry.spacing_mm)), grid, fill=AIR_HU)
    body = _on(found.mask, grid)
    # The couch stays behind: it must not bend with the patient.
    near = ndimage.binary_dilation(body, iterations=max(1, round(SKIN_MARGIN_MM / grid.spacing_mm[0])))
    smooth = smooth.with_data(np.where(near, smooth.as_float(), np.float32(AIR_HU)))
    centre = _centre(body, liver, grid)
    skin = _coarse(body, grid)
    stand_in = liver or _stand_in_liver(body, grid)
    wall = _wall(skin, _coarse(_on(stand_in, grid), grid), _coarse(_compact_bone(smooth), grid), _step_mm(grid))
    return Patient(
        smooth,
        stand_in,
        tumour,
        _distance(skin, grid, centre),
        _distance(wall, grid, centre, smoothing=1.0),
        centre,
    )


def _working_grid(geometry: Geometry, spacing_mm: float) -> Geometry:
    """An isotropic upright grid over a scan, somewhat finer than the images to come: finer would only cost time."""
    fine = float(np.clip(np.median(geometry.spacing_mm), WORKING_SHARE * spacing_mm, spacing_mm))
    low, high = geometry.corners_mm().min(0), geometry.corners_mm().max(0)
    i, j, k = (int(n) for n in np.maximum(np.round((high - low) / fine) + 1, 2))
    return Geometry.from_spacing((i, j, k), fine, origin_mm=low)


def _centre(body: NDArray[np.bool_], liver: Volume | None, grid: Geometry) -> Point:
    if liver is None:
        return grid.index_to_world(np.argwhere(body[::2, ::2, ::2]).mean(0) * 2)
    return liver.geometry.index_to_world(np.argwhere(liver.as_mask()).mean(0))


def _stand_in_liver(body: NDArray[np.bool_], grid: Geometry) -> Volume:
    points = grid.grid_mm()
    inside = points[body]
    middle, half = inside.mean(0), np.ptp(inside, axis=0) / 2
    distance = (((points - middle - [0.4 * half[0], 0, 0]) / (half * [0.45, 0.6, 0.45])) ** 2).sum(-1)
    return Volume((distance < 1) & body, grid)


def _on(mask: Volume, grid: Geometry) -> Mask:
    if mask.geometry.same_grid(grid):
        return mask.as_mask()
    return resample(mask.with_data(mask.as_mask().astype(np.uint8)), grid, mode="nearest", fill=0).as_mask()


def _compact_bone(ct: Volume) -> Mask:
    """Ribs and spine; what is thinner than three voxels, such as contrasted vessels, is left out."""
    return np.asarray(ndimage.binary_opening(ct.as_float() > BONE_HU))


def _wall(skin: Mask, liver: Mask, bone: Mask, step_mm: float) -> Mask:
    """What lies within the sliding wall, on the coarse grid: deep under the skin, or about the liver, and no bone."""
    deep = ndimage.distance_transform_edt(skin, sampling=step_mm) > WALL_DEPTH_MM
    about_liver = (ndimage.distance_transform_edt(~liver, sampling=step_mm) < AROUND_LIVER_MM) & skin
    within = (deep & ~ndimage.binary_dilation(bone)) | about_liver
    return np.asarray(ndimage.binary_opening(within, iterations=2) | about_liver)


def _step_mm(grid: Geometry) -> float:
    return max(1, round(DISTANCE_STEP_MM / grid.spacing_mm[0])) * grid.spacing_mm[0]


def _coarse(mask: Mask, grid: Geometry) -> Mask:
    """Every voxel of about 5 mm; the body goes on above and below the scan, and ends at its sides."""
    step = round(_step_mm(grid) / grid.spacing_mm[0])
    longer = np.pad(mask[::step, ::step, ::step], ((0, 0), (0, 0), (BEYOND_SCAN, BEYOND_SCAN)), mode="edge")
    return np.pad(longer, ((1, 1), (1, 1), (0, 0)))


def _distance(coarse: Mask, grid: Geometry, centre: Point, smoothing: float = 0.0) -> Lattice:
    """Signed distance (negative inside) of a coarse mask, in the liver's frame."""
    spacing = _step_mm(grid)
    inside, outside = (ndimage.distance_transform_edt(m, sampling=spacing) for m in (coarse, ~coarse))
    distance = ndimage.gaussian_filter((outside - inside).astype(np.float32), smoothing)
    origin = np.array(grid.origin_mm) - centre - np.array([1, 1, BEYOND_SCAN]) * spacing
    return Lattice(distance[None], origin, spacing)
