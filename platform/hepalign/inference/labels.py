"""Labels carried through a field: the liver and each tumour kept apart in one map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.errors import BadInputError
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.warp import Box, bounding_box, warp_masks

LIVER_VALUE = 1
FIRST_TUMOUR_VALUE = 2
# A map's values are one byte each.
MOST_TUMOURS = 255 - LIVER_VALUE
LABEL_NAMES = ("pmr_liver", "pmr_tumour", "pct_liver", "pct_tumour")


@dataclass(frozen=True)
class LabelMap:
    """A map of label values and what each means (`liver`, `tumour 1`, `tumour 2`, …)."""

    volume: Volume
    names: Mapping[int, str]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Voxels of every label whose name begins with `name` (the liver includes its tumours)."""
        values = [value for value, label in self.names.items() if label.startswith(name)]
        return np.isin(self.volume.data, values)


def checked_labels(labels: Mapping[str, Volume] | None) -> dict[str, Volume]:
    """Labels by canonical name; `pmr:tumour` and `pmr_tumour` are one.

    Raises:
        BadInputError: `unknown_label`; `bad_label` for more tumours than a label map has values.
    """
    checked: dict[str, Volume] = {}
    for name, volume in (labels or {}).items():
        canonical = name.replace(":", "_")
        if canonical not in LABEL_NAMES:
            raise BadInputError(f"no label is called {name!r}; known: {', '.join(LABEL_NAMES)}", code="unknown_label")
        if canonical.endswith("_tumour") and len(_numbered(volume)[2]) > MOST_TUMOURS:
            raise BadInputError(
                f"{name} is in more than {MOST_TUMOURS} pieces: remove the specks, or give each tumour a value",
                code="bad_label",
            )
        checked[canonical] = volume
    return checked


def separate_tumours(mask: Volume) -> list[NDArray[np.bool_]]:
    """One mask a tumour: the map's own values where it has several, else connected pieces."""
    box, numbered, values = _numbered(mask)
    masks = []
    for value in values:
        whole = np.zeros(mask.data.shape, bool)
        whole[box] = numbered == value
        masks.append(whole)
    return masks


def _numbered(mask: Volume) -> tuple[Box, NDArray[np.integer], list[int]]:
    """The box that holds all tumours, a number in it for each tumour's voxels, and the numbers."""
    box = bounding_box(mask.as_mask()) or (slice(0), slice(0), slice(0))
    data = np.rint(np.asarray(mask.data[box])).astype(np.int64)
    values = [int(value) for value in np.unique(data) if value > 0]
    if len(values) > 1:
        return box, data, values
    pieces, count = ndimage.label(data > 0, ndimage.generate_binary_structure(3, 3))
    return box, pieces, list(range(1, count + 1))


def warp_labels(
    labels: Mapping[str, Volume], from_pct: DisplacementField, from_pmr: DisplacementField | None
) -> LabelMap | None:
    """Liver (1) and tumours (2, 3, …) on the field's grid; None where there are no labels.

    A structure labelled on both images comes from the pCT (one registration instead of two); each tumour is warped
    by itself, linearly and cut at one half, so that small ones keep their volume.
    """
    out = np.zeros(from_pct.geometry.shape, np.uint8)
    names: dict[int, str] = {}
    liver = _chosen(labels, "liver", from_pct, from_pmr)
    if liver is not None:
        volume, field = liver
        out[warp_masks([volume.as_mask()], volume.geometry, field)[0]] = LIVER_VALUE
        names[LIVER_VALUE] = "liver"
    tumour = _chosen(labels, "tumour", from_pct, from_pmr)
    if tumour is not None:
        volume, field = tumour
        for index, piece in enumerate(warp_masks(separate_tumours(volume), volume.geometry, field)):
            value = FIRST_TUMOUR_VALUE + index
            out[piece] = value
            names[value] = f"tumour {index + 1}"
    return LabelMap(Volume(out, from_pct.geometry), names) if names else None


def _chosen(
    labels: Mapping[str, Volume], structure: str, from_pct: DisplacementField, from_pmr: DisplacementField | None
) -> tuple[Volume, DisplacementField] | None:
    if f"pct_{structure}" in labels:
        return labels[f"pct_{structure}"], from_pct
    if f"pmr_{structure}" in labels and from_pmr is not None:
        return labels[f"pmr_{structure}"], from_pmr
    return None
