"""Images and labels as hospitals send them, read and checked on their own grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from pydicom.dataset import Dataset

from hepalign.cases.deidentify import kept_attributes
from hepalign.cases.labels import label_onto, numbered_tumours
from hepalign.cases.sources.locations import local_copy
from hepalign.errors import BadInputError
from hepalign.image.bias import bias_field
from hepalign.image.checks import check_ct, check_mr
from hepalign.image.dicom import SeriesIdentity, load_series
from hepalign.image.dicom_seg import read_segmentation
from hepalign.image.intensity import MR_BODY_UNIT, body_mask, normalise_mr
from hepalign.image.nifti import read_nifti
from hepalign.image.nifti_header import Orientation
from hepalign.image.read import holds_dicom
from hepalign.image.volume import Volume

SHAPE = (256, 256, 128)
AIR_HU = -1024.0


@dataclass(frozen=True)
class ImportSettings:
    """How images are read and onto which grid they go; the fields are arguments of `import_case`."""

    shape: tuple[int, int, int] = SHAPE
    spacing_mm: float | None = None
    orientation: Orientation = "auto"
    drop_localizers: bool = False
    resample_tilt: bool = False
    n4: bool = False
    series: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scan:
    """One image as it was scanned, and what its header may tell."""

    role: str
    volume: Volume
    identity: SeriesIdentity | None
    acquisition: dict[str, JsonValue]
    header: Dataset | None
    bias: Volume | None

    @property
    def fill(self) -> float:
        """What stands outside the scan: air in a CT, the background of an MR."""
        return AIR_HU if self.role != "pmr" else float(self.volume.as_float().min())

    def body(self) -> Volume:
        """A mask of the body."""
        if self.role != "pmr":
            return body_mask(self.volume)
        scaled, _ = normalise_mr(self.volume)
        return self.volume.with_data(scaled > MR_BODY_UNIT)


def read_scan(role: str, place: Path | str, settings: ImportSettings, report: list[str]) -> Scan:
    """Read and check one image.

    Args:
        role: `pmr` for an MR; any other name (`pct`, `ict`, `ct`) for a CT; messages call the image so.
        place: NIfTI, DICOM folder or zip, or an s3:// place.
        settings: how it is read.
        report: warnings are appended here.

    Raises:
        UsageError, BadInputError: those of `read_nifti`, `load_series`, `check_ct`, `check_mr` and `local_copy`.
    """
    with local_copy(place, name=role) as path:
        if holds_dicom(path):
            read = load_series(
                path,
                name=role,
                report=report,
                series=settings.series.get(role),
                drop_localizers=settings.drop_localizers,
                resample_tilt=settings.resample_tilt,
            )
            volume, identity, header = read.volume, read.identity, read.headers[0]
            acquisition = kept_attributes(header)
        else:
            volume = read_nifti(path, name=role, orientation=settings.orientation)
            identity, acquisition, header = None, {}, None
    bias = None
    if role == "pmr":
        check_mr(volume, role)
        if settings.n4:
            bias = bias_field(volume)
            volume = volume.with_data(volume.as_float() / bias.as_float())
    else:
        check_ct(volume, role, report)
        # scanners pad with values below any gas
        volume = volume.with_data(np.maximum(volume.as_float(), np.float32(AIR_HU)))
    return Scan(role, volume, identity, acquisition, header, bias)


def read_label(name: str, place: Path | str, scan: Scan, report: list[str]) -> Volume:
    """Read a label, NIfTI or DICOM SEG, onto its image's grid; several tumours get a number each.

    Args:
        name: `{image}_{structure}`, as messages call it.
        place: file, folder or zip, or an s3:// place.
        scan: what it was drawn on.
        report: warnings are appended here.

    Raises:
        UsageError, BadInputError: those of `read_nifti`, `read_segmentation`, `label_onto` and `local_copy`;
            `patient_mismatch`, `frame_mismatch`.
    """
    with local_copy(place, name=name) as path:
        drawn = read_drawn(path, name, scan, name.partition("_")[2])
        label = label_onto(drawn, scan.volume, name=name, report=report)
    if not name.endswith("_tumour"):
        return label
    numbered = numbered_tumours(label)
    if numbered is not label:
        report.append(f"{name}: {int(numbered.data.max())} separate tumours were numbered, the largest 1")
    return numbered


def read_drawn(path: Path, name: str, scan: Scan, structure: str) -> Volume:
    """A mask or label map on the grid it was drawn on; a SEG must be of the image's patient and frame.

    Raises:
        BadInputError: those of `read_nifti` and `read_segmentation`; `patient_mismatch`, `frame_mismatch`.
    """
    if not holds_dicom(path):
        return read_nifti(path, name=name)
    found = read_segmentation(path, structure, name=name)
    if scan.identity is not None and found.identity.patient != scan.identity.patient:
        message = f"{name}: the segmentation is of another patient than its image (PatientID differs)"
        raise BadInputError(message, code="patient_mismatch")
    if scan.identity is not None and found.identity.frame_of_reference != scan.identity.frame_of_reference:
        message = f"{name}: the segmentation was drawn in another frame of reference than its image"
        raise BadInputError(message, code="frame_mismatch")
    return found.volume
