"""What a guide call gives back, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hepalign.errors import BadInputError
from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap
from hepalign.inference.provenance import CONVENTION
from hepalign.inference.result_writer import ResultWriter
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import read_field

if TYPE_CHECKING:
    from hepalign.inference.planner import Plan


@dataclass(frozen=True)
class GuideResult:
    """Everything on the iCT's grid.

    Args:
        ict: the intra-procedural CT that came in.
        inpct: the iCT with the probe and its artefact inpainted.
        inpainted_mask: bool, the synthetic voxels of `inpct`.
        pct_on_ict: the pCT, resampled once.
        pmr_on_ict: the pMR, resampled once through the composed field.
        sct_on_ict: the synthetic CT, resampled with the pMR.
        labels_on_ict: liver and tumours; None where no labels came in, or where no registration can be trusted.
        field_ict_from_pct: maps iCT points into the pCT.
        field_ict_from_pmr: maps iCT points into the pMR.
        quality: CONTRACT's `quality` object.
        provenance: release, digests, code version, device.
        timings: seconds by step, and `compute_s`.
        plan_digest: of the plan that was used.
        warnings: what its reader should know.
        degraded: True where a smaller or simpler way was taken.
        uncertainty_mm: by tumour name, the error to be expected there; without those of which nobody can say.
        margins: by tumour name, coverage of the tumour and its 5 and 10 mm margins by the ablation zone.
        tumour_in_hole: True where a tumour lies in inpainted voxels for the most part.
        outside_grid_fraction: share of the iCT that maps outside the pCT.
    """

    ict: Volume
    inpct: Volume
    inpainted_mask: Volume
    pct_on_ict: Volume
    pmr_on_ict: Volume
    sct_on_ict: Volume
    labels_on_ict: LabelMap | None
    field_ict_from_pct: DisplacementField
    field_ict_from_pmr: DisplacementField
    quality: Mapping[str, object]
    provenance: Mapping[str, object]
    timings: Mapping[str, float]
    plan_digest: str
    warnings: tuple[str, ...]
    degraded: bool
    uncertainty_mm: Mapping[str, float]
    margins: Mapping[str, Mapping[str, float]]
    tumour_in_hole: bool
    outside_grid_fraction: float

    def summary(self) -> dict[str, object]:
        """The content of `result.json`."""
        names = {} if self.labels_on_ict is None else self.labels_on_ict.names
        return {
            **self.provenance,
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "quality": dict(self.quality),
            "plan_digest": self.plan_digest,
            "convention": CONVENTION,
            "warnings": list(self.warnings),
            "degraded": self.degraded,
            "uncertainty_mm": dict(self.uncertainty_mm),
            "margins": {name: dict(values) for name, values in self.margins.items()},
            "tumour_in_hole": self.tumour_in_hole,
            "outside_grid_fraction": self.outside_grid_fraction,
            "labels": {str(value): name for value, name in names.items()},
        }

    def parts(self) -> dict[str, Volume | DisplacementField]:
        """What becomes a file of its own, by that file's name without ending."""
        labels = {} if self.labels_on_ict is None else {"labels_on_ict": self.labels_on_ict.volume}
        return {
            "field_ict_from_pct": self.field_ict_from_pct,
            "field_ict_from_pmr": self.field_ict_from_pmr,
            "inpct": self.inpct,
            "inpainted_mask": self.inpainted_mask,
            "pct_on_ict": self.pct_on_ict,
            "pmr_on_ict": self.pmr_on_ict,
            "sct_on_ict": self.sct_on_ict,
            **labels,
        }

    def save(self, folder: Path, *, h5: bool = False) -> None:
        """Write CONTRACT's files into `folder`; see `ResultWriter`, which can begin before the result is there."""
        with ResultWriter(folder) as writer:
            writer.finish(self, h5=h5)


def load_previous(folder: Path, plan: Plan, *, report: list[str]) -> DisplacementField | None:
    """The pCT-to-iCT field of an earlier result, for a repeated iCT to start from.

    None, with a line in `report`, where that result was rejected or is another plan's: a start that is wrong is worse
    than none.

    Raises:
        BadInputError: `previous_missing` when the folder holds no finished result.
    """
    path = folder / "field_ict_from_pct.nii.gz"
    if not (folder / "result.json").is_file() or not path.is_file():
        raise BadInputError(
            "the previous result lacks result.json or field_ict_from_pct.nii.gz: name the folder that `guide` wrote",
            code="previous_missing",
        )
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if found["quality"]["status"] == "reject" or found["plan_digest"] != plan.digest:
        report.append("the previous result was rejected or belongs to another plan: this one was started anew")
        return None
    return read_field(path)
