"""Whether a registration may be used: accept, review or reject, with reasons.

Two questions are asked of what a registration shows of itself (how well the images agree at the end, on average and
where they agree least; whether the way back agrees; how far the field wanders from other starts; how much it strains
the tissue): how far off it is, an expected error in mm, a regression on cases whose error is known; and whether these
are two patients at all. The second has an answer of its own, for another patient's field may be as steady as a right
one, and a difficult pair of one patient agree no better than two. `benchmarks/quality.py` fits both and the limits,
writes `quality.json`, and judges them on other cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter
from scipy import ndimage

from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap

Status = Literal["accept", "review", "reject"]
MARGINS_MM = (0.0, 5.0, 10.0)
# A tumour that lies in inpainted voxels by more than this share was not seen.
HIDDEN_SHARE = 0.5
MODEL_FILE = "quality.json"
# Below these a measure says no more; a disagreement below the last.
FLOORS = {"inverse_consistency_mm": 0.05, "spread_mm": 0.05, "strain": 0.01}
FLOOR = 1e-3


@dataclass(frozen=True)
class Limits:
    """Where review and reject begin for what the expected error does not know of."""

    liver_dice_review: float = 0.85
    liver_dice_reject: float = 0.6
    outside_review: float = 0.35
    outside_reject: float = 0.7
    uncertainty_review_mm: float = 5.0


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on; None where it was not measured.

    Args:
        similarity_before: as `similarity_after`, after the affine start alone.
        similarity_after: 1 less the mean squared MIND-SSC difference in soft tissue, under the field.
        worst_similarity: the same where it is worst (1st percentile over some centimetres).
        inverse_consistency_mm: mean gap of there and back.
        spread_mm: mean spread of the fields reached from other starts.
        strain: mean |log| of the volume change in soft tissue.
        liver_dice: of the warped and the given liver.
        outside_fraction: share of the fixed image that maps outside the moving one.
        folding_fraction: share of folded voxels.
        jacobian_min: least determinant.
        jacobian_max: largest determinant.
        uncertainty_mm: at the most uncertain tumour.
        failed: why there is no registration.
    """

    similarity_before: float
    similarity_after: float
    worst_similarity: float
    inverse_consistency_mm: float
    spread_mm: float
    strain: float
    liver_dice: float | None
    outside_fraction: float
    folding_fraction: float
    jacobian_min: float
    jacobian_max: float
    uncertainty_mm: float | None = None
    failed: str | None = None

    def measures(self) -> dict[str, float]:
        """Logarithms of what the verdict is computed from; `gain` is by how much the field lessened disagreement."""
        values = {
            "start_disagreement": 1 - self.similarity_before,
            "disagreement": 1 - self.similarity_after,
            "worst_disagreement": 1 - self.worst_similarity,
            "inverse_consistency_mm": self.inverse_consistency_mm,
            "spread_mm": self.spread_mm,
            "strain": self.strain,
        }
        logs = {name: float(np.log(max(value, FLOORS.get(name, FLOOR)))) for name, value in values.items()}
        start = logs.pop("start_disagreement")
        return {**logs, "gain": start - logs["disagreement"]}


class WeightedSum(BaseModel):
    """An intercept and weights by measure of the evidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intercept: float
    weights: dict[str, float]

    def of(self, measures: Mapping[str, float]) -> float:
        """The sum over `Evidence.measures`."""
        return self.intercept + sum(weight * measures[name] for name, weight in self.weights.items())


class PatientModel(WeightedSum):
    """Whether the images are of two patients: their log odds, as a weighted sum of the evidence's measures.

    Args:
        limit: log odds above this are those of two patients.
        least_gain: a field that gains less than this, between images that disagree by more than the next, fits nothing.
        most_disagreement: see `least_gain`.
    """

    limit: float
    least_gain: float
    most_disagreement: float

    def suspects(self, measures: Mapping[str, float]) -> bool:
        """Whether such measures (`Evidence.measures`) are those of two patients."""
        if measures["gain"] < self.least_gain and measures["disagreement"] > self.most_disagreement:
            return True
        return self.of(measures) > self.limit


class ErrorModel(WeightedSum):
    """log(error in mm) as a weighted sum of the evidence's measures, and the limits on the error it expects.

    Args:
        review_mm: an expected error above this asks for a look.
        reject_mm: one above this forbids use.
        tumour_scale: error at a tumour over the field's spread there, as measured.
        two_patients: the other question.
    """

    review_mm: float
    reject_mm: float
    tumour_scale: float
    two_patients: PatientModel

    def expected_error_mm(self, measures: Mapping[str, float]) -> float:
        """What error such measures (`Evidence.measures`) came with."""
        return float(np.exp(self.of(measures)))


@cache
def error_model(moving: Literal["ct", "mr"] = "ct") -> ErrorModel:
    """The fitted model for a moving CT, or for an MR."""
    text = files("hepalign.inference").joinpath(MODEL_FILE).read_text(encoding="utf-8")
    models = TypeAdapter(dict[str, ErrorModel]).validate_json(text)
    return models[moving]


def judge(
    evidence: Evidence, model: ErrorModel | None = None, limits: Limits | None = None
) -> tuple[Status, list[str]]:
    """The verdict and, unless it is accept, why."""
    model, limits = model or error_model(), limits or Limits()
    if evidence.failed is not None:
        return "reject", [evidence.failed]
    measures = evidence.measures()
    if not np.isfinite(list(measures.values())).all():
        return "reject", ["what the registration shows of itself is no number"]
    findings = [
        # value, review and reject limit, +1 where more is worse, words
        (model.expected_error_mm(measures), model.review_mm, model.reject_mm, 1,
         "registrations that look like this one are off by about {:.0f} mm"),
        (evidence.liver_dice, limits.liver_dice_review, limits.liver_dice_reject, -1,
         "the livers overlap with a Dice of {:.2f} only"),
        (evidence.outside_fraction, limits.outside_review, limits.outside_reject, 1,
         "{:.0%} of the fixed image lies outside the moving one"),
        (evidence.folding_fraction, 0.0, 0.0, 1, "the field folds at {:.2%} of its voxels"),
        (evidence.uncertainty_mm, limits.uncertainty_review_mm, np.inf, 1,
         "the field at the tumour is uncertain by {:.1f} mm"),
    ]  # fmt: skip
    status: Status = "accept"
    reasons = []
    if model.two_patients.suspects(measures):
        status, reasons = "reject", ["the images agree as those of two patients do"]
    for value, review, reject, sign, words in findings:
        if value is None or sign * value <= sign * review:
            continue
        reasons.append(words.format(value))
        status = "reject" if sign * value > sign * reject else ("review" if status == "accept" else status)
    return status, reasons


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """2|A∩B| / (|A|+|B|); 0 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 0.0


def tumour_names(labels: LabelMap | None) -> Mapping[str, int]:
    """Label values by tumour name."""
    return {} if labels is None else {n: v for v, n in labels.names.items() if n.startswith("tumour")}


def hidden_share(tumour: NDArray[np.bool_], hole: NDArray[np.bool_]) -> float:
    """The part of the tumour that lies in inpainted voxels."""
    voxels = int(tumour.sum())
    return int((tumour & hole).sum()) / voxels if voxels else 0.0


def margin_coverage(tumour: Volume, ablation: Volume) -> dict[str, float]:
    """The share of the tumour grown by 0, 5 and 10 mm that the ablation zone covers."""
    distance = ndimage.distance_transform_edt(~tumour.as_mask(), sampling=tumour.geometry.spacing_mm)
    zone = ablation.as_mask()
    coverage = {}
    for margin in MARGINS_MM:
        grown = distance <= margin
        coverage[f"{margin:.0f}_mm"] = float((grown & zone).sum() / max(int(grown.sum()), 1))
    return coverage
