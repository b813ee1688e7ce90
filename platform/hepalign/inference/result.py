"""What a guide call gives back, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepalign.errors import BadInputError
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign.inference.labels import LabelMap
from hepalign.inference.overview import write_overview
from hepalign.inference.provenance import CONVENTION
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.files import read_field, write_field

# Each holds a field twice while it packs it.
WRITERS = 2


@dataclass(frozen=True)
class GuideResult:
    """Everything on the iCT's grid.

    Args:
        ict: the intra-procedural CT that came in.
        inpct: the iCT with the probe and its artefact inpainted.
        inpainted_mask: bool, the synthetic voxels of `inpct`.
        pct_on_ict: the pCT, resampled once.
        pmr_on_ict: the pMR, resampled once through the composed field.
        labels_on_ict: liver and tumours; None where no labels came in, or where no registration can be trusted.
        field_ict_from_pct: maps iCT points into the pCT.
        field_ict_from_pmr: maps iCT points into the pMR.
        quality: CONTRACT's `quality` object.
        provenance: release, digests, code version, device.
        timings: seconds by step, and `compute_s`.
        plan_digest: of the plan that was used.
        warnings: what its reader should know.
        degraded: True where a smaller or simpler way was taken.
        uncertainty_mm: by tumour name, spread of the field there.
        margins: by tumour name, coverage of the tumour and its 5 and 10 mm margins by the ablation zone.
        tumour_in_hole: True where a tumour lies in inpainted voxels for the most part.
        outside_grid_fraction: share of the iCT that maps outside the pCT.
    """

    ict: Volume
    inpct: Volume
    inpainted_mask: Volume
    pct_on_ict: Volume
    pmr_on_ict: Volume
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

    def save(self, folder: Path, *, h5: bool = False, more_cts: Mapping[str, Volume] | None = None) -> Path:
        """Write CONTRACT's files into `folder`; result.json comes last.

        Args:
            folder: made where it is missing.
            h5: adds the fields as ITK transforms.
            more_cts: further CTs to write beside them, by their files' names without ending.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        (folder / "labels_on_ict.nii.gz").unlink(missing_ok=True)
        fields = {"field_ict_from_pct": self.field_ict_from_pct, "field_ict_from_pmr": self.field_ict_from_pmr}
        cts = {"inpct": self.inpct, "pct_on_ict": self.pct_on_ict, **(more_cts or {})}
        others = {"inpainted_mask": self.inpainted_mask, "pmr_on_ict": self.pmr_on_ict}
        if self.labels_on_ict is not None:
            others["labels_on_ict"] = self.labels_on_ict.volume
        # compressing leaves Python's lock: a second file is packed, or the picture drawn, meanwhile
        with ThreadPoolExecutor(WRITERS) as writers:
            written = [writers.submit(write_overview, self, folder / "overview.png")]
            written += [writers.submit(write_field, f, folder / f"{name}.nii.gz") for name, f in fields.items()]
            written += [writers.submit(write_ct, v, folder / f"{name}.nii.gz") for name, v in cts.items()]
            written += [writers.submit(write_nifti, v, folder / f"{name}.nii.gz") for name, v in others.items()]
        for each in written:
            each.result()
        # one after the other: HDF5 is not made for threads
        for name, field in fields.items() if h5 else ():
            write_field(field, folder / f"{name}.h5")
        (folder / "result.json").write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        return folder


def load_previous(folder: Path) -> DisplacementField:
    """The pCT-to-iCT field of an earlier result, for a repeated iCT to start from.

    Raises:
        BadInputError: `previous_missing` when the folder holds no finished result.
    """
    path = folder / "field_ict_from_pct.nii.gz"
    if not (folder / "result.json").is_file() or not path.is_file():
        raise BadInputError(
            "the previous result lacks result.json or field_ict_from_pct.nii.gz: name the folder that `guide` wrote",
            code="previous_missing",
        )
    return read_field(path)


def as_stored_ct(volume: Volume) -> Volume:
    """HU rounded to int16: a quarter of the bytes, and what scanners store."""
    return volume.with_data(np.clip(np.rint(np.asarray(volume.data)), -32768, 32767).astype(np.int16))


def write_ct(volume: Volume, path: Path) -> None:
    """`write_nifti` of HU as they are stored."""
    write_nifti(as_stored_ct(volume), path)
