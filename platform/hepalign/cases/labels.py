"""Label maps and masks that come in beside an image."""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

LARGEST_LABEL = 32767
# A label drawn on this image may stick out of a cropped field of view, not lie mostly elsewhere.
LEAST_INSIDE = 0.5
# Two scans of one patient in one frame share far more than this part of the smaller one.
LEAST_OVERLAP = 0.05


def label_onto(label: Volume, image: Volume, *, name: str, report: list[str] | None = None) -> Volume:
    """A label map on its image's grid, its values kept apart (faults 35, 36 and 40).

    Args:
        label: whole numbers, 0 for background; any grid in the image's frame.
        image: what it was drawn on.
        name: for messages.
        report: a warning is appended here where the label was resampled (nearest neighbour) or lost a value.

    Returns:
        uint8, or int16 for values past 255, on the image's grid.

    Raises:
        BadInputError: `bad_label` for values that are no whole numbers of at least 0, `empty_label`,
            `frame_mismatch` where most of it lies outside the image.
    """
    values = np.unique(label.data)
    if values[0] < 0 or values[-1] > LARGEST_LABEL or (values != np.rint(values)).any():
        message = f"{name}: a label map holds whole numbers from 0 to {LARGEST_LABEL}; is it an image?"
        raise BadInputError(message, code="bad_label")
    if values[-1] == 0:
        raise BadInputError(f"{name}: the mask is empty; draw it or leave it out", code="empty_label")
    whole = label.with_data(label.data.astype(np.uint8 if values[-1] < 256 else np.int16))
    if label.geometry.same_grid(image.geometry):
        return whole
    drawn = label.geometry.index_to_world(np.argwhere(label.as_mask()))
    if image.geometry.contains(drawn).mean() < LEAST_INSIDE:
        message = f"{name}: lies outside its image, so it was drawn in another frame; export both from one study"
        raise BadInputError(message, code="frame_mismatch")
    moved = resample(whole, image.geometry, mode="nearest", fill=0)
    if report is not None:
        report.append(f"{name}: was on another grid and was resampled to its image's")
        lost = sorted(set(values[values > 0].astype(int).tolist()) - set(np.unique(moved.data).tolist()))
        if lost:
            report.append(f"{name}: label {', '.join(map(str, lost))} vanished in resampling: it is too small")
    if not moved.data.any():
        raise BadInputError(f"{name}: nothing of the mask lies in its image", code="empty_label")
    return moved


def numbered_tumours(label: Volume) -> Volume:
    """A tumour mask with a number for each tumour, the largest 1; a map with several values is left as it is."""
    if len(np.unique(label.data)) > 2:
        return label
    parts, count = scipy.ndimage.label(label.as_mask(), structure=np.ones((3, 3, 3)))
    if not 1 < count < 256:
        return label
    order = np.argsort(-np.bincount(parts.ravel())[1:], kind="stable")
    number = np.zeros(count + 1, np.uint8)
    number[order + 1] = np.arange(1, count + 1)
    return label.with_data(number[parts])


def check_overlap(a: Geometry, b: Geometry, *, names: tuple[str, str] = ("pCT", "iCT")) -> None:
    """Refuse two images that share no place in the world (fault 42).

    Raises:
        BadInputError: `no_overlap`.
    """
    corners = [np.array([g.corners_mm().min(axis=0), g.corners_mm().max(axis=0)]) for g in (a, b)]
    shared = np.minimum(corners[0][1], corners[1][1]) - np.maximum(corners[0][0], corners[1][0])
    smaller = min(float(np.prod(high - low)) for low, high in corners)
    if (shared <= 0).any() or float(np.prod(shared)) < LEAST_OVERLAP * smaller:
        message = f"{names[0]} and {names[1]} do not overlap in space; send images of one region and one patient frame"
        raise BadInputError(message, code="no_overlap")
