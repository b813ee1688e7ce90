"""The coarse mask over probe and artefact: box, polygon or voxels, as a mask on the iCT's grid.

JSON, world millimetres (RAS); several shapes are united:

    {"kind": "box", "low_mm": [x, y, z], "high_mm": [x, y, z]}
    {"kind": "polygon", "points_mm": [[x, y], …], "z_mm": [low, high]}
    {"shapes": [ … ]}

A polygon is drawn on an axial slice and holds from `low` to `high`; slice by slice, give one polygon a slice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import coarse_body_mask
from hepalign.image.read import read_volume
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.warp import bounding_box

Points = NDArray[np.float64]

# A coarse mask is a probe's; one that hides a fifth of the patient is a mistake.
LARGEST_BODY_SHARE = 0.2
MOST_SHAPES, MOST_VERTICES = 1000, 2000
NAME = "probe mask"


def box_mask(low_mm: Points, high_mm: Points, geometry: Geometry) -> Volume:
    """Voxels whose centre lies in a box with faces along the world's axes."""
    mask = np.zeros(geometry.shape, bool)
    # a probe is small: world positions of the whole iCT would take a hundred times its bytes
    box = geometry.index_box(low_mm, high_mm)
    points = geometry.grid_mm(box)
    mask[box] = ((points >= np.asarray(low_mm)) & (points <= np.asarray(high_mm))).all(axis=-1)
    return Volume(mask, geometry)


def polygon_mask(points_mm: Points, z_mm: tuple[float, float], geometry: Geometry) -> Volume:
    """Voxels whose centre lies in an axial polygon (N, 2: x, y) from one height to another (even-odd rule)."""
    polygon = np.asarray(points_mm, np.float64)
    # Polygons of neighbouring slices must leave no gap: a voxel within half its thickness belongs.
    thick = 0.5 * float(np.abs(geometry.affine[2, :3]).max())
    low, high = z_mm[0] - thick, z_mm[1] + thick
    box = geometry.index_box((*polygon.min(axis=0), low), (*polygon.max(axis=0), high))
    grid = geometry.grid_mm(box)
    level = (grid[..., 2] >= low) & (grid[..., 2] <= high)
    mask = np.zeros(geometry.shape, bool)
    mask[box][level] = _in_polygon(grid[level][:, :2], polygon)
    return Volume(mask, geometry)


def voxel_mask(mask: Volume, geometry: Geometry, warnings: list[str] | None = None, *, name: str = NAME) -> Volume:
    """A mask drawn in voxels, on the iCT's grid; on another grid of the same frame it is resampled, with a warning.

    Raises:
        BadInputError: `frame_mismatch` when the two grids share no place.
    """
    if mask.geometry.same_grid(geometry):
        return Volume(mask.as_mask(), geometry)
    every_fourth = mask.geometry.grid_mm((slice(None, None, 4),) * 3)
    if not geometry.contains(every_fourth).any():
        raise BadInputError(f"{name}: lies in another frame than the iCT; draw it on the iCT", code="frame_mismatch")
    if warnings is not None:
        warnings.append(f"{name}: was on another grid and was resampled to the iCT's")
    onto = resample(Volume(mask.as_mask().astype(np.uint8), mask.geometry), geometry, mode="nearest", fill=0)
    return Volume(onto.as_mask(), geometry)


def parse_probe_mask(document: str | bytes | Mapping[str, object], geometry: Geometry, *, name: str = NAME) -> Volume:
    """The mask that a JSON document describes, on the iCT's grid (not yet checked against the patient).

    Raises:
        BadInputError: `bad_probe_mask` when the document is not one of the shapes above, or a polygon crosses
            itself or holds a number that is not finite.
    """
    parsed = _decode(document, name)
    shapes = parsed.get("shapes", [parsed])
    if not isinstance(shapes, list) or not 1 <= len(shapes) <= MOST_SHAPES:
        raise _bad(name, f'"shapes" is a list of 1 to {MOST_SHAPES} boxes and polygons')
    united = np.zeros(geometry.shape, bool)
    for shape in shapes:
        united |= _shape_mask(shape, geometry, name).as_mask()
    return Volume(united, geometry)


def check_probe_mask(mask: Volume, ct: Volume, *, name: str = NAME) -> None:
    """Refuses a mask that cannot be a probe's.

    Raises:
        BadInputError: as `check_mask_on_body`.
    """
    check_mask_on_body(mask, coarse_body_mask(ct), name=name)


def check_mask_on_body(mask: Volume, body: Volume, *, name: str = NAME) -> None:
    """Refuses a mask that cannot be a probe's.

    Args:
        mask: on the iCT's grid.
        body: the iCT's `coarse_body_mask`.
        name: what errors call the mask.

    Raises:
        BadInputError: `empty_probe_mask` (37) when it covers no voxel of the iCT's field of view,
            `probe_mask_too_large` (38) when it covers over 20 % of the body.
    """
    inside = mask.as_mask()
    box = bounding_box(inside)
    if box is None:
        raise BadInputError(f"{name}: covers no voxel of the iCT; draw it over the probe", code="empty_probe_mask")
    near = resample(body, mask.crop(box).geometry).as_mask()
    covered_mm3 = float((inside[box] & near).sum()) * mask.geometry.voxel_volume_mm3
    share = covered_mm3 / max(float(body.data.sum()) * body.geometry.voxel_volume_mm3, 1.0)
    if share > LARGEST_BODY_SHARE:
        raise BadInputError(
            f"{name}: covers {share:.0%} of the body, more than {LARGEST_BODY_SHARE:.0%}; draw it over the probe only",
            code="probe_mask_too_large",
        )


def read_probe_mask(
    path: Path, geometry: Geometry, body: Volume, *, report: list[str] | None = None, name: str = NAME
) -> Volume:
    """The checked mask of a file: JSON shapes, or an image of the mask on any grid of the iCT's frame.

    Args:
        path: `.json`, or what `read_volume` reads.
        geometry: the iCT's.
        body: the iCT's `coarse_body_mask`.
        report: warnings are appended here.
        name: what errors call it.

    Raises:
        BadInputError: as `parse_probe_mask`, `voxel_mask`, `check_mask_on_body` and `read_volume`.
    """
    if path.suffix == ".json":
        mask = parse_probe_mask(path.read_bytes(), geometry, name=name)
    else:
        mask = voxel_mask(read_volume(path, name=name, report=report), geometry, report, name=name)
    check_mask_on_body(mask, body, name=name)
    return mask


def _decode(document: str | bytes | Mapping[str, object], name: str) -> Mapping[str, object]:
    if isinstance(document, Mapping):
        return document
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _bad(name, "is not JSON") from error
    if not isinstance(parsed, dict):
        raise _bad(name, "is not a JSON object")
    return cast("dict[str, object]", parsed)


def _shape_mask(shape: object, geometry: Geometry, name: str) -> Volume:
    if not isinstance(shape, Mapping):
        raise _bad(name, "every shape is an object with a kind")
    if shape.get("kind") == "box":
        low, high = _numbers(shape, "low_mm", (3,), name), _numbers(shape, "high_mm", (3,), name)
        if not (low < high).all():
            raise _bad(name, "a box's low_mm lies below its high_mm on every axis")
        return box_mask(low, high, geometry)
    if shape.get("kind") == "polygon":
        points = _without_repeats(_numbers(shape, "points_mm", (None, 2), name))
        z = np.sort(_numbers(shape, "z_mm", (2,), name))
        if not 3 <= len(points) <= MOST_VERTICES:
            raise _bad(name, f"a polygon has 3 to {MOST_VERTICES} points")
        if _crosses_itself(points):
            raise _bad(name, "a polygon crosses itself; draw its outline in order")
        return polygon_mask(points, (float(z[0]), float(z[1])), geometry)
    raise _bad(name, 'a shape\'s kind is "box" or "polygon"')


def _numbers(shape: Mapping[str, object], key: str, expected: tuple[int | None, ...], name: str) -> Points:
    try:
        values = np.array(shape.get(key), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    fits = values.ndim == len(expected) and all(e in (None, n) for e, n in zip(expected, values.shape, strict=True))
    if not fits or not np.isfinite(values).all():
        wanted = " × ".join("N" if n is None else str(n) for n in expected)
        raise _bad(name, f'"{key}" holds {wanted} finite numbers')
    return values


def _bad(name: str, what: str) -> BadInputError:
    return BadInputError(f"{name}: {what}", code="bad_probe_mask")


def _in_polygon(points: Points, polygon: Points) -> NDArray[np.bool_]:
    inside = np.zeros(len(points), bool)
    x, y = points.T
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ay != by:
            crossing = (ay > y) != (by > y)
            inside ^= crossing & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside


def _without_repeats(polygon: Points) -> Points:
    """The polygon without vertices that repeat the one before: many tools close it with its first point."""
    moves: NDArray[np.bool_] = (polygon != np.roll(polygon, 1, axis=0)).any(axis=1)
    return polygon[moves]


def _crosses_itself(polygon: Points) -> bool:
    """Whether two edges that are not neighbours meet."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    count = len(polygon)
    for first in range(count - 2):
        others = slice(first + 2, count - 1 if first == 0 else count)
        a, b, c, d = start[first], end[first], start[others], end[others]
        if ((_side(a, b, c) * _side(a, b, d) <= 0) & (_side(c, d, a) * _side(c, d, b) <= 0)).any():
            return True
    return False


def _side(a: Points, b: Points, c: Points) -> Points:
    """Twice the signed area of a, b, c; broadcasts."""
    area: Points = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    return area
