"""Needles that an iCT shows, and the coarse mask over them and their artefact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume

Points = NDArray[np.float64]

# Needles part from each other and from bone at different thresholds; thick voxels and titanium dilute them.
METAL_HU = (2500.0, 2000.0, 1700.0, 1400.0, 1100.0)
# No bone is straight, thin and this dense.
SURE_METAL_HU = 2000.0
SMALLEST_NEEDLE_VOXELS, SHORTEST_NEEDLE_MM, NEEDLE_RADIUS_MM = 8, 35.0, 1.5
# Needles of one procedure run side by side.
LARGEST_ANGLE_DEG, FARTHEST_APART_MM = 25.0, 40.0
EXTENSION_MM = 30.0
# Between several needles the rays starve: one, more than one.
ARTEFACT_MARGIN_MM = (9.0, 13.0)
TRIALS, MOST_NEEDLES, MOST_POINTS = 200, 6, 2000


@dataclass(frozen=True)
class _Line:
    start: Points
    end: Points
    half_width_mm: float

    @property
    def heading(self) -> Points:
        along: Points = (self.end - self.start) / np.linalg.norm(self.end - self.start)
        return along


def find_probe(ict: Volume, warnings: list[str] | None = None) -> Volume:
    """The coarse mask of the needles an iCT shows: straight metal, widened by what its artefact spans.

    What is straight and thin above 2000 HU is a needle; below (titanium, thick slices) only what runs beside such
    a needle is taken, or, where there is none, what stands out at the highest threshold, with a warning.

    Args:
        ict: HU.
        warnings: what the reader should check is appended here.

    Raises:
        BadInputError: `probe_not_found` when nothing looks like a needle.
    """
    hu = ict.as_float()
    needles: list[_Line] = []
    sure = False
    for threshold_hu in METAL_HU:
        lines = _lines(hu > threshold_hu, ict.geometry)
        needles += [line for line in lines if threshold_hu >= SURE_METAL_HU or _belongs(line, needles)]
        sure = sure or (threshold_hu >= SURE_METAL_HU and bool(needles))
    if not needles:
        raise BadInputError("the iCT shows no needle; draw a probe mask by hand", code="probe_not_found")
    if not sure and warnings is not None:
        warnings.append("the probe stands out little from bone: look at the probe mask, or draw it by hand")
    return Volume(_around(needles, ict.geometry), ict.geometry)


def _belongs(line: _Line, needles: list[_Line]) -> bool:
    """Whether a faint line may be a needle: it runs beside one that is known, or none is."""
    if not needles:
        return True
    for needle in needles:
        alike = abs(line.heading @ needle.heading) > np.cos(np.deg2rad(LARGEST_ANGLE_DEG))
        if alike and _apart(line, needle) < FARTHEST_APART_MM:
            return True
    return False


def _apart(line: _Line, needle: _Line) -> float:
    """Distance of a line's middle from a needle's axis, mm; the same needle is found at several thresholds."""
    offset = (line.start + line.end) / 2 - needle.start
    return float(np.linalg.norm(offset - (offset @ needle.heading) * needle.heading))


def _lines(metal: NDArray[np.bool_], geometry: Geometry) -> list[_Line]:
    """Straight thin parts of a mask's components."""
    places = np.argwhere(metal)
    # One voxel grown: where a needle passes between voxels its core breaks up.
    grown = ndimage.binary_dilation(metal, np.ones((3, 3, 3), bool))
    labels = ndimage.label(grown, np.ones((3, 3, 3)))[0][tuple(places.T)]
    sizes = np.bincount(labels)
    lines = []
    for label in np.flatnonzero(sizes >= SMALLEST_NEEDLE_VOXELS):
        points = geometry.index_to_world(places[labels == label])
        if np.linalg.norm(np.ptp(points, axis=0)) >= SHORTEST_NEEDLE_MM:
            lines += _fan(points, max(geometry.spacing_mm))
    return lines


def _fan(points: Points, voxel_mm: float) -> list[_Line]:
    """The needles in one component (N, 3), mm: they meet in a tumour, so the best line is taken out and so on."""
    rng = np.random.default_rng(0)
    reach_mm = NEEDLE_RADIUS_MM + 0.5 * voxel_mm
    lines: list[_Line] = []
    solid = points  # all that is no needle taken before
    while len(points) >= SMALLEST_NEEDLE_VOXELS and len(lines) < MOST_NEEDLES:
        axis = _best_axis(rng, points, reach_mm)
        if axis is None:
            break
        along, apart = _coordinates(points, *axis)
        low, high = _longest_run(np.sort(along[apart < reach_mm]), 3 * voxel_mm)
        run = (along >= low) & (along <= high)
        if high - low < SHORTEST_NEEDLE_MM:
            break
        inside = run & (apart < reach_mm)
        if _thin(solid, axis, (low, high), reach_mm):
            point, heading = axis
            lines.append(_Line(point + low * heading, point + high * heading, float(apart[inside].max())))
            solid = solid[_coordinates(solid, *axis)[1] >= reach_mm]
        points = points[~((apart < reach_mm) | (run & (apart < 2 * reach_mm)))]
    return lines


def _thin(solid: Points, axis: tuple[Points, Points], ends: tuple[float, float], reach_mm: float) -> bool:
    """Whether less stands around a line's stretch than in it: bone is thick."""
    along, apart = _coordinates(solid, *axis)
    run = (along >= ends[0]) & (along <= ends[1])
    around = run & (apart >= reach_mm) & (apart < 2.5 * reach_mm)
    return bool(around.sum() <= (run & (apart < reach_mm)).sum())


def _best_axis(rng: np.random.Generator, points: Points, reach_mm: float) -> tuple[Points, Points] | None:
    """A point and the heading of the line with most points near (RANSAC, Fischler and Bolles 1981), then fitted."""
    if len(points) > MOST_POINTS:
        points = points[rng.permutation(len(points))[:MOST_POINTS]]
    first, second = (points[rng.integers(len(points), size=TRIALS)] for _ in range(2))
    best: tuple[Points, Points] | None = None
    most = 0
    for start, end in zip(first, second, strict=True):
        length = np.linalg.norm(end - start)
        if length < SHORTEST_NEEDLE_MM / 2:
            continue
        near = int((_coordinates(points, start, (end - start) / length)[1] < reach_mm).sum())
        if near > most:
            best, most = (start, (end - start) / length), near
    for _ in range(3 if best is not None else 0):
        assert best is not None
        inliers = points[_coordinates(points, *best)[1] < reach_mm]
        if len(inliers) < 3:
            break
        middle = inliers.mean(0)
        best = middle, np.linalg.svd(inliers - middle, full_matrices=False)[2][0]
    return best


def _coordinates(points: Points, point: Points, heading: Points) -> tuple[Points, Points]:
    """Positions along a line and distances from it, mm."""
    offset = points - point
    along = offset @ heading
    return along, np.asarray(np.linalg.norm(offset - along[:, None] * heading, axis=1))


def _longest_run(positions: Points, gap_mm: float) -> tuple[float, float]:
    """Both ends of the longest stretch of sorted positions without a gap."""
    if not len(positions):
        return 0.0, 0.0
    gaps = np.flatnonzero(np.diff(positions) > gap_mm)
    starts, ends = positions[np.r_[0, gaps + 1]], positions[np.r_[gaps, len(positions) - 1]]
    longest = int(np.argmax(ends - starts))
    return float(starts[longest]), float(ends[longest])


def _around(needles: list[_Line], geometry: Geometry) -> NDArray[np.bool_]:
    """Capsules about the needles, past both ends as far as their streaks are dark."""
    mask = np.zeros(geometry.shape, bool)
    margin_mm = ARTEFACT_MARGIN_MM[any(_apart(needle, needles[0]) > NEEDLE_RADIUS_MM * 2 for needle in needles)]
    for needle in needles:
        radius_mm = needle.half_width_mm + margin_mm
        first, last = needle.start - EXTENSION_MM * needle.heading, needle.end + EXTENSION_MM * needle.heading
        box = geometry.index_box(np.minimum(first, last) - radius_mm, np.maximum(first, last) + radius_mm)
        offset = geometry.grid_mm(box) - first
        share = np.clip(offset @ needle.heading / np.linalg.norm(last - first), 0, 1)
        mask[box] |= np.linalg.norm(offset - share[..., None] * (last - first), axis=-1) < radius_mm
    return mask
