"""Whether a registration may be used: accept, review or reject, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap

Status = Literal["accept", "review", "reject"]
MARGINS_MM = (0.0, 5.0, 10.0)
# A tumour that lies in inpainted voxels by more than this share was not seen.
HIDDEN_SHARE = 0.5


@dataclass(frozen=True)
class Limits:
    """Where review and reject begin: set by eye on half a dozen cases of one generator, not calibrated yet."""

    similarity_review: float = 0.962
    similarity_reject: float = 0.955
    strain_review: float = 0.245
    strain_reject: float = 0.28
    inverse_review_mm: float = 2.0
    inverse_reject_mm: float = 6.0
    liver_dice_review: float = 0.85
    liver_dice_reject: float = 0.6
    outside_review: float = 0.35
    outside_reject: float = 0.7
    uncertainty_review_mm: float = 3.0


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on; None where it was not measured."""

    similarity_after: float
    inverse_consistency_mm: float | None
    liver_dice: float | None
    outside_fraction: float
    folding_fraction: float
    strain: float
    jacobian_min: float
    jacobian_max: float
    uncertainty_mm: float | None = None
    failed: str | None = None


def judge(evidence: Evidence, limits: Limits | None = None) -> tuple[Status, list[str]]:
    """The verdict and, unless it is accept, why."""
    limits = limits or Limits()
    if evidence.failed is not None:
        return "reject", [evidence.failed]
    findings = [
        # value, review and reject limit, +1 where more is worse, words
        (evidence.similarity_after, limits.similarity_review, limits.similarity_reject, -1,
         "the images agree poorly (similarity {:.3f})"),
        (evidence.inverse_consistency_mm, limits.inverse_review_mm, limits.inverse_reject_mm, 1,
         "there and back differ by {:.1f} mm"),
        (evidence.liver_dice, limits.liver_dice_review, limits.liver_dice_reject, -1,
         "the livers overlap with a Dice of {:.2f} only"),
        (evidence.outside_fraction, limits.outside_review, limits.outside_reject, 1,
         "{:.0%} of the fixed image lies outside the moving one"),
        (evidence.strain, limits.strain_review, limits.strain_reject, 1,
         "the field changes the tissue's volume too much (mean |log| {:.2f})"),
        (evidence.folding_fraction, 0.0, 0.0, 1, "the field folds at {:.2%} of its voxels"),
        (evidence.uncertainty_mm, limits.uncertainty_review_mm, np.inf, 1,
         "the field at the tumour is uncertain by {:.1f} mm"),
    ]  # fmt: skip
    status: Status = "accept"
    reasons = []
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
