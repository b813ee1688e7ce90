"""The three pairs of a case and everything that scores a field between two of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.case import Case
from hepalign.cases.cohort import Cohort
from hepalign.cases.landmarks import common
from hepalign.evaluation import metrics
from hepalign.image.intensity import body_mask, mr_body_mask
from hepalign.image.volume import Volume
from hepalign.shapes import Mask3
from hepalign.transform.displacement import DisplacementField, resample_field
from hepalign.transform.warp import outside_grid, warp

Pair = Literal["pMR-pCT", "pCT-iCT", "pMR-iCT"]
# moving and fixed role of each pair, in the order of the chain
PAIRS: dict[Pair, tuple[str, str]] = {"pMR-pCT": ("pmr", "pct"), "pCT-iCT": ("pct", "ict"), "pMR-iCT": ("pmr", "ict")}
STRUCTURES = ("liver", "tumour")


@dataclass(frozen=True, eq=False)
class Patient:
    """A case's images, read when they are first asked for."""

    cohort: Cohort
    case: Case

    def pairs(self) -> list[Pair]:
        """The pairs whose two images the case has."""
        return [pair for pair, roles in PAIRS.items() if self.case.has(*roles)]

    @cached_property
    def _volumes(self) -> dict[str, Volume]:
        return {}

    def volume(self, name: str) -> Volume:
        """An image, mask or label map of the case; it is read (and its digest checked) once."""
        if name not in self._volumes:
            self._volumes[name] = self.cohort.volume(self.case, name)
        return self._volumes[name]

    def mask(self, name: str) -> Volume | None:
        """A mask of the case as bool, or None where it has none."""
        if not self.case.has(name):
            return None
        volume = self.volume(name)
        return volume.with_data(volume.as_mask())

    def valid(self, role: str) -> Mask3 | None:
        """True outside the coarse probe mask of the iCT; None for an image without a probe."""
        mask = self.mask("ict_probe_mask") if role == "ict" else None
        return None if mask is None else ~mask.as_mask()

    def truth(self, pair: Pair) -> DisplacementField | None:
        """The known field of a pair, or None."""
        moving, fixed = PAIRS[pair]
        name = f"truth_field_{fixed}_from_{moving}"
        return self.cohort.field(self.case, name) if self.case.has(name) else None


def score(
    patient: Patient, pair: Pair, field: DisplacementField, backward: DisplacementField | None = None
) -> dict[str, float]:
    """Every metric of one field that the case's labels, landmarks and truth allow.

    Keys are `{structure}_{dice|hd95_mm|assd_mm|tre_mm|dense_tre_mm}` for liver and tumour, `hole_dense_tre_mm` (the
    liver's part in the hole), `body_dense_tre_mm` (where no liver is known: of the body that both images show) and
    `body_skin_mm` (there as well: from the fixed body's outline to the other's),
    `folding_fraction`, `sd_log_jacobian`, `jacobian_min`, `jacobian_max`, and `inverse_consistency_mm` where the same
    method's field of the images exchanged (`backward`) came along: over the liver, or the body without a label.
    """
    _, fixed = PAIRS[pair]
    field = resample_field(field, patient.volume(fixed).geometry)
    scores: dict[str, float] = {}
    for structure in STRUCTURES:
        scores |= _overlap(patient, pair, structure, field)
    scores |= _landmarks(patient, pair, field)
    body = body_mask(patient.volume(fixed)).as_mask()
    scores |= _dense(patient, pair, field, body)
    scores |= _skin(patient, pair, field, body)
    regular = metrics.regularity(field, body)
    scores |= {name: getattr(regular, name) for name in metrics.Regularity.__dataclass_fields__}
    liver = patient.mask(f"{fixed}_liver")
    inside = body if liver is None or not liver.data.any() else liver.as_mask()
    if backward is not None:
        scores["inverse_consistency_mm"] = metrics.inverse_consistency_mm(field, backward, inside)
    return scores


def _overlap(patient: Patient, pair: Pair, structure: str, field: DisplacementField) -> dict[str, float]:
    moving, fixed = (patient.mask(f"{role}_{structure}") for role in PAIRS[pair])
    if moving is None or fixed is None or not (moving.data.any() and fixed.data.any()):
        return {}
    carried = warp(moving.with_data(moving.data.astype(np.uint8)), field, mode="nearest").as_mask()
    truth, grid = fixed.as_mask(), fixed.geometry
    return {
        f"{structure}_dice": metrics.dice(carried, truth),
        f"{structure}_hd95_mm": metrics.hausdorff_95_mm(carried, truth, grid),
        f"{structure}_assd_mm": metrics.surface_distance_mm(carried, truth, grid),
    }


def _landmarks(patient: Patient, pair: Pair, field: DisplacementField) -> dict[str, float]:
    moving, fixed = PAIRS[pair]
    if not patient.case.has(f"{moving}_landmarks", f"{fixed}_landmarks"):
        return {}
    there, here = (patient.cohort.landmarks(patient.case, role) for role in (moving, fixed))
    names, fixed_mm, moving_mm = common(here, there)
    if not names:
        return {}
    errors = metrics.landmark_errors_mm(field, fixed_mm, moving_mm)
    of_tumour = np.array([name.lower().startswith(("tumour", "tumor")) for name in names])
    groups = {"liver": ~of_tumour, "tumour": of_tumour}
    return {f"{name}_tre_mm": float(errors[group].mean()) for name, group in groups.items() if group.any()}


def _dense(patient: Patient, pair: Pair, field: DisplacementField, body: Mask3) -> dict[str, float]:
    truth = patient.truth(pair)
    if truth is None:
        return {}
    fixed = PAIRS[pair][1]
    regions: dict[str, NDArray[np.bool_]] = {}
    for structure in STRUCTURES:
        mask = patient.mask(f"{fixed}_{structure}")
        if mask is not None and mask.data.any():
            regions[structure] = mask.as_mask()
    hole = patient.mask("ict_probe_mask") if fixed == "ict" else None
    if hole is not None and "liver" in regions:
        regions["hole"] = hole.as_mask() & regions["liver"]
    if "liver" not in regions:
        regions["body"] = body & ~outside_grid(patient.volume(PAIRS[pair][0]).geometry, truth)
    return {
        f"{name}_dense_tre_mm": float(metrics.dense_errors_mm(field, truth, region).mean())
        for name, region in regions.items()
        if region.any() and region.shape == truth.geometry.shape
    }


def _skin(patient: Patient, pair: Pair, field: DisplacementField, body: Mask3) -> dict[str, float]:
    """Asked where no liver is known: the alignment that limbs come with is off by millimetres itself."""
    moving, fixed = PAIRS[pair]
    if patient.case.has(f"{fixed}_liver"):
        return {}
    image = patient.volume(moving)
    there = mr_body_mask(image) if moving == "pmr" else body_mask(image)
    carried = warp(there.with_data(there.as_float()), field).as_float() > 0.5
    shown = ~outside_grid(image.geometry, field)
    return {"body_skin_mm": metrics.skin_distance_mm(carried, body, shown, field.geometry)}
