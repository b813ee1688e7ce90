"""The slices of DICOM objects, single-frame or multi-frame: where each lies and the grid they form together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.nifti_header import MAX_SHEAR

# Scanners round positions to a tenth of a millimetre; a missing slice is a whole spacing.
POSITION_TOLERANCE_MM = 0.15
# Orientations that differ by more than this (in their cosines) are two scans.
ORIENTATION_TOLERANCE = 1e-3
# World axes of DICOM (LPS) to ours and back.
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice: its (rows, columns), where it lies, how stored values become physical ones. Vectors in LPS mm."""

    header: Dataset
    frame: int
    shape: tuple[int, int]
    position: NDArray[np.float64]
    cosines: NDArray[np.float64]
    spacing: NDArray[np.float64]
    slope: float
    intercept: float
    localizer: bool

    @property
    def normal(self) -> NDArray[np.float64]:
        """Across the slice, by the right hand."""
        return np.cross(self.cosines[:3], self.cosines[3:])


def sorted_planes(headers: list[Dataset], name: str, warnings: list[str], drop_localizers: bool) -> list[Plane]:
    """Every slice of a series, from the first to the last along its normal.

    Args:
        headers: the series' objects.
        name: what to call it in messages.
        warnings: what was left out is told here.
        drop_localizers: leave localizer images out instead of refusing.

    Raises:
        BadInputError: `localizer`, `too_few_slices`, `mixed_geometry`, `missing_geometry`.
    """
    planes = [plane for header in headers for plane in _planes(header, name)]
    localizers = sum(plane.localizer for plane in planes)
    if localizers and not drop_localizers:
        message = f"{name}: {localizers} of {len(planes)} images are localizers; leave them out of the export"
        raise BadInputError(message, code="localizer")
    if localizers:
        planes = [plane for plane in planes if not plane.localizer]
        warnings.append(f"{name}: {localizers} localizer images were left out")
    if len(planes) < 2:
        raise BadInputError(f"{name}: {len(planes)} slice is no volume; send the whole series", code="too_few_slices")
    first = planes[0]
    for plane in planes:
        alike = np.allclose(plane.spacing, first.spacing, rtol=1e-3)
        if plane.shape != first.shape or not alike:
            raise BadInputError(f"{name}: slices of different size or spacing; send one series", code="mixed_geometry")
        if np.abs(plane.cosines - first.cosines).max() > ORIENTATION_TOLERANCE:
            raise BadInputError(f"{name}: slices of different orientation; send one series", code="mixed_geometry")
    return sorted(planes, key=lambda plane: float(plane.position @ first.normal))


def _planes(header: Dataset, name: str) -> Iterator[Plane]:
    """The slices of one object; multi-frame attributes from the frame, else from what all frames share."""
    try:
        frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
        if len(frames) != int(header.get("NumberOfFrames") or 1):
            raise ValueError("every frame needs its place")
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for number, own in enumerate(frames):
            groups = (own, shared, header)
            rescale = _group(groups, "PixelValueTransformationSequence")
            orientation = _group(groups, "PlaneOrientationSequence")
            kind = header.get("ImageType") or []
            plane = Plane(
                header, number, (int(header.Rows), int(header.Columns)),
                _numbers(_group(groups, "PlanePositionSequence").ImagePositionPatient, 3),
                _numbers(orientation.ImageOrientationPatient, 6),
                _numbers(_group(groups, "PixelMeasuresSequence").PixelSpacing, 2),
                float(rescale.get("RescaleSlope", 1.0)), float(rescale.get("RescaleIntercept", 0.0)),
                any("LOCALIZER" in str(word).upper() for word in ([kind] if isinstance(kind, str) else kind)),
            )  # fmt: skip
            _check_plane(plane)
            yield plane
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError):
        message = f"{name}: an image without a usable position, orientation or spacing; export it as CT or MR"
        raise BadInputError(message, code="missing_geometry") from None


def _group(groups: tuple[Dataset, Dataset, Dataset], sequence: str) -> Dataset:
    """The item of a functional group: the frame's own, else the shared one, else (single-frame) the object itself."""
    own, shared, header = groups
    for group in (own, shared):
        if items := group.get(sequence):
            item: Dataset = items[0]
            return item
    return header


def _numbers(values: object, count: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{count} finite numbers are needed")
    return numbers


def _check_plane(plane: Plane) -> None:
    across, down = plane.cosines[:3], plane.cosines[3:]
    skew = max(abs(across @ down), abs(across @ across - 1), abs(down @ down - 1))
    if (
        skew > ORIENTATION_TOLERANCE * 10
        or min(plane.shape) < 1
        or plane.spacing.min() <= 0
        or not np.isfinite([plane.slope, plane.intercept]).all()
    ):
        raise ValueError("a slice has pixels, an orthonormal orientation, positive spacing and a finite rescale")


def grid_of(planes: list[Plane], name: str, *, allow_tilt: bool) -> Geometry:
    """The grid (columns, rows, slices) of sorted planes, sheared where the gantry was tilted.

    Raises:
        BadInputError: `duplicate_position`, `missing_slice`, `uneven_slices`, `gantry_tilt`.
    """
    first, count = planes[0], len(planes)
    positions = np.array([plane.position for plane in planes])
    heights = positions @ first.normal
    _check_even(heights, name)
    step = (positions[-1] - positions[0]) / (count - 1)
    if np.abs(positions - positions[0] - np.arange(count)[:, None] * step).max() > 2 * POSITION_TOLERANCE_MM:
        raise BadInputError(f"{name}: slices do not lie on one line; send one acquisition", code="uneven_slices")
    tilt = tilt_of(planes)
    if tilt > MAX_SHEAR and not allow_tilt:
        angle = np.degrees(np.arcsin(min(tilt, 1.0)))
        mend = "ask for it to be resampled (hepalign data import --resample-tilt)"
        message = f"{name}: the gantry was tilted by {angle:.1f}°; {mend}"
        raise BadInputError(message, code="gantry_tilt")
    affine = np.eye(4)
    affine[:3, 0] = first.cosines[:3] * first.spacing[1]
    affine[:3, 1] = first.cosines[3:] * first.spacing[0]
    affine[:3, 2] = step if tilt > MAX_SHEAR else first.normal * (heights[-1] - heights[0]) / (count - 1)
    affine[:3, 3] = first.position
    return Geometry((first.shape[1], first.shape[0], count), RAS_LPS @ affine)


def _check_even(heights: NDArray[np.float64], name: str) -> None:
    """Refuse slices (sorted, mm along the normal) that are doubled, missing or unevenly spaced, and say where."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() < POSITION_TOLERANCE_MM / 10:
        pair = f"{int(gaps.argmin()) + 1} and {int(gaps.argmin()) + 2} of {len(heights)}"
        message = f"{name}: slices {pair} lie at one position (phases or echoes?); send one volume"
        raise BadInputError(message, code="duplicate_position")
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) <= max(POSITION_TOLERANCE_MM, 0.02 * usual):
        return
    pair = f"{worst + 1} and {worst + 2} of {len(heights)}"
    where = f"between slices {pair} lie {gaps[worst]:.2f} mm instead of {usual:.2f}"
    missing = round(gaps[worst] / usual) - 1
    if missing > 0:
        message = f"{name}: {missing} slices are missing: {where}; send the whole series"
        raise BadInputError(message, code="missing_slice")
    raise BadInputError(f"{name}: slices are not evenly spaced: {where}", code="uneven_slices")


def tilt_of(planes: list[Plane]) -> float:
    """The sine of the angle between the line of the slices and their normal."""
    along = planes[-1].position - planes[0].position
    normal = planes[0].normal
    return float(np.linalg.norm(along - (along @ normal) * normal) / np.linalg.norm(along))


def upright(sheared: Geometry) -> Geometry:
    """The grid with right angles, of the same in-plane axes, that holds every voxel of a sheared one."""
    affine = sheared.affine.copy()
    in_plane = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    affine[:3, 2] -= in_plane @ (in_plane.T @ affine[:3, 2])
    corners = Geometry(sheared.shape, affine).world_to_index(sheared.corners_mm())
    low, high = np.floor(corners.min(axis=0) + 1e-6), np.ceil(corners.max(axis=0) - 1e-6)
    columns, rows, slices = ((high - low).astype(int) + 1).tolist()
    affine[:3, 3] += affine[:3, :3] @ low
    return Geometry((columns, rows, slices), affine)
