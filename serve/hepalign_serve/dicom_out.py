"""Results as DICOM: derived CT and MR series, segmentations and a picture, on the iCT's frame of reference."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign_serve.dicom_seg import segmentation
from hepalign_serve.dicom_source import (
    MANUFACTURER,
    MODEL,
    NOTICE,
    described,
    instances,
    patient_and_study,
    release_name,
    uid_of,
    warned,
    zone_of,
)  # fmt: skip
from hepalign_serve.problems import RequestError


@dataclass(frozen=True)
class Form:
    """How an artifact goes into DICOM."""

    kind: Literal["CT", "MR", "SEG", "SC"]
    number: int
    label: str
    derivation: str


@dataclass(frozen=True)
class _Order:
    """One artifact that goes out; the same artifact always gets the same UIDs, so that a PACS keeps it once."""

    form: Form
    result: Mapping[str, Any]
    source: Dataset
    seed: str
    made: datetime

    def uid(self, part: str) -> UID:
        return uid_of(self.seed, part)


FORMS = {
    "pct_on_ict.nii.gz": Form("CT", 9801, "pCT on iCT", "planning CT resampled once onto the intra-procedural CT"),
    "pmr_on_ict.nii.gz": Form("MR", 9802, "pMR on iCT", "planning MR resampled once onto the intra-procedural CT"),
    "sct_on_ict.nii.gz": Form("CT", 9803, "SYNTHETIC CT", "CT made from the planning MR by a network: SYNTHETIC"),
    "inpct.nii.gz": Form("CT", 9804, "iCT inpainted", "probe and artefact replaced by SYNTHETIC voxels"),
    "labels_on_ict.nii.gz": Form("SEG", 9805, "labels on iCT", "labels carried onto the intra-procedural CT"),
    "inpainted_mask.nii.gz": Form("SEG", 9806, "SYNTHETIC voxels", "the inpainted CT's synthetic voxels"),
    "overview.png": Form("SC", 9807, "fused overview", "planes of the iCT with planning CT, MR and labels over it"),
}
# Of signed 16 bits; below a scanner's own range values keep four digits by a scale that is told.
_MR_STEPS = 4095
_CT_WINDOW = (40.0, 400.0)


def export(name: str, path: Path, result: Mapping[str, Any], source: Dataset) -> bytes:
    """A zip of the DICOM objects of one artifact.

    Args:
        name: the artifact; the keys of `FORMS`.
        path: its file, on the iCT's grid.
        result: what `result.json` says: its status goes into every description, its release into the equipment.
        source: what `dicom_source.kept` kept of the iCT.

    Raises:
        RequestError: 422 `no_dicom_form` for what has none (fields, JSON).
    """
    form = FORMS.get(name)
    if form is None:
        message = "this artifact has no DICOM form: ask without format=dicom"
        raise RequestError(message, code="no_dicom_form", status=422)
    order = _Order(form, result, source, _seed(name, path, result, source), _written(path, source))
    if form.kind == "SC":
        objects: Sequence[Dataset] = [_capture(np.asarray(Image.open(path).convert("RGB")), order)]
    elif form.kind == "SEG":
        objects = [_labels(read_nifti(path), name, order)]
    else:
        objects = _derived_series(read_nifti(path), order)
    return _zipped(name.partition(".")[0], objects)


def _seed(name: str, path: Path, result: Mapping[str, Any], source: Dataset) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "/".join((name, digest, described(name, result), release_name(result), source.SeriesInstanceUID))


def _written(path: Path, source: Dataset) -> datetime:
    """When an artifact was made, in the zone of the study's times: all times of one object are of one zone."""
    return datetime.fromtimestamp(path.stat().st_mtime, zone_of(source))


def _labels(volume: Volume, name: str, order: _Order) -> Dataset:
    names = {int(value): str(label) for value, label in order.result.get("labels", {}).items()}
    meant = names if name.startswith("labels") else {1: "synthetic"}
    made = segmentation(volume, meant, _carriers(volume, order.source))
    made.update(_common(order))
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = order.uid("0")
    return made


def _derived_series(volume: Volume, order: _Order) -> list[Dataset]:
    """One object a slice along the last axis; CT as HU, MR as its own numbers."""
    form, source = order.form, order.source
    pixels, slope, intercept = _stored(volume, form.kind)
    common = _common(order)
    common.SOPClassUID = CTImageStorage if form.kind == "CT" else MRImageStorage
    common.update(_frame(volume, source))
    common.update(_image(form.kind, pixels, slope, intercept))
    common.DerivationDescription = f"{warned(order.result)}{form.derivation}. {NOTICE}."
    common.BurnedInAnnotation, common.LossyImageCompression = "NO", "00"
    # The inpainted CT is made of the iCT's slices; the others only lie on them.
    sources = instances(source, pixels.shape[2]) if form.label == FORMS["inpct.nii.gz"].label else []
    affine = _lps(volume)
    slices: list[Dataset] = []
    for k in range(pixels.shape[2]):
        one = _object(common, order.uid(str(k)))
        one.InstanceNumber = k + 1
        one.ImagePositionPatient = [_decimal(v) for v in affine[:3, 3] + k * affine[:3, 2]]
        if sources:
            one.SourceImageSequence = [sources[k]]
        one.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
        slices.append(one)
    return slices


def _carriers(volume: Volume, source: Dataset) -> list[Dataset]:
    """The iCT's slices without their pixels, for what refers to them."""
    empty = volume.with_data(np.zeros(volume.geometry.shape, np.int16))
    made = _derived_series(empty, _Order(Form("CT", 0, "", ""), {}, source, "", datetime.now(zone_of(source))))
    for one, reference in zip(made, instances(source, len(made)), strict=False):
        one.SOPInstanceUID = reference.ReferencedSOPInstanceUID
        one.SOPClassUID = reference.ReferencedSOPClassUID or CTImageStorage
        one.SeriesInstanceUID = source.SeriesInstanceUID
    return made


def _capture(rgb: NDArray[np.uint8], order: _Order) -> Dataset:
    """A picture as a secondary capture, rgb (rows, columns, 3)."""
    common = _common(order)
    common.SOPClassUID = SecondaryCaptureImageStorage
    common.ConversionType, common.PatientOrientation = "WSD", ""
    common.ImageType = ["DERIVED", "SECONDARY"]
    common.SamplesPerPixel, common.PhotometricInterpretation, common.PlanarConfiguration = 3, "RGB", 0
    common.BitsAllocated, common.BitsStored, common.HighBit, common.PixelRepresentation = 8, 8, 7, 0
    common.Rows, common.Columns = rgb.shape[:2]
    common.DerivationDescription = f"{warned(order.result)}{order.form.derivation}. {NOTICE}."
    common.BurnedInAnnotation, common.LossyImageCompression = "NO", "00"
    one = _object(common, order.uid("0"))
    one.InstanceNumber = 1
    pixels = np.ascontiguousarray(rgb).tobytes()
    one.PixelData = pixels + b"\0" * (len(pixels) % 2)
    return one


def _common(order: _Order) -> Dataset:
    common, form, result = patient_and_study(order.source), order.form, order.result
    common.SeriesInstanceUID = order.uid("series")
    common.Modality = "OT" if form.kind == "SC" else form.kind
    common.SeriesNumber, common.SeriesDescription = form.number, described(form.label, result)
    common.ImageComments = f"{warned(result)}{NOTICE}"
    common.ContentQualification = "RESEARCH"
    common.Manufacturer, common.ManufacturerModelName = MANUFACTURER, MODEL
    common.SoftwareVersions, common.BodyPartExamined = release_name(result), "ABDOMEN"
    common.ContentDate = common.SeriesDate = common.InstanceCreationDate = order.made.strftime("%Y%m%d")
    common.ContentTime = common.SeriesTime = common.InstanceCreationTime = order.made.strftime("%H%M%S")
    if order.made.tzinfo is not None:
        common.TimezoneOffsetFromUTC = order.made.strftime("%z")
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept("109103", "DCM", "Modifying Equipment")]
    equipment.Manufacturer, equipment.ManufacturerModelName = MANUFACTURER, MODEL
    equipment.SoftwareVersions, equipment.ContributionDescription = release_name(result), NOTICE
    common.ContributingEquipmentSequence = [equipment]
    return common


def _frame(volume: Volume, source: Dataset) -> Dataset:
    frame, affine, spacing = Dataset(), _lps(volume), volume.geometry.spacing_mm
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.PositionReferenceIndicator = source.get("PositionReferenceIndicator", "")
    frame.PatientPosition = source.get("PatientPosition", "HFS")
    frame.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    frame.SliceThickness = frame.SpacingBetweenSlices = _decimal(spacing[2])
    frame.ImageOrientationPatient = [_decimal(v) for v in (*direction[:, 0], *direction[:, 1])]
    return frame


def _image(kind: str, pixels: NDArray[np.int16], slope: float, intercept: float) -> Dataset:
    image = Dataset()
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind == "CT" else "OTHER"]
    image.Rows, image.Columns = pixels.shape[1], pixels.shape[0]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.AcquisitionNumber = None
    if kind == "CT":
        image.KVP, image.RescaleType = None, "HU"
        (centre, width) = _CT_WINDOW
    else:
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
        image.MRAcquisitionType = image.EchoTime = image.EchoTrainLength = image.RepetitionTime = ""
        low, high = (float(v) * slope + intercept for v in np.percentile(pixels, (1, 99)))
        centre, width = (low + high) / 2, max(high - low, slope)
    image.WindowCenter, image.WindowWidth = _decimal(centre), _decimal(width)
    # The MR image module knows no rescaling: it is told only where the numbers are not the scanner's.
    if kind == "CT" or (slope, intercept) != (1.0, 0.0):
        image.RescaleSlope, image.RescaleIntercept = _decimal(slope), _decimal(intercept)
    return image


def _stored(volume: Volume, kind: str) -> tuple[NDArray[np.int16], float, float]:
    data = volume.as_float()
    low, high = float(data.min()), float(data.max())
    slope, intercept = 1.0, 0.0
    if kind != "CT" and not (low >= np.iinfo(np.int16).min and _MR_STEPS / 4 < high <= np.iinfo(np.int16).max):
        slope, intercept = float(f"{max(high - low, 1e-6) / _MR_STEPS:.9g}"), low
    limits = np.iinfo(np.int16)
    return np.clip(np.rint((data - intercept) / slope), limits.min, limits.max).astype("<i2"), slope, intercept


def _object(common: Dataset, uid: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(common.SOPClassUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.update(common)
    one.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid
    return one


def _zipped(folder: str, objects: Sequence[Dataset]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for number, made in enumerate(objects):
            content = io.BytesIO()
            dcmwrite(content, made, enforce_file_format=True)
            archive.writestr(f"{folder}/{number:04d}.dcm", content.getvalue())
    return packed.getvalue()


def _lps(volume: Volume) -> NDArray[np.float64]:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.affine


def _decimal(value: float) -> str:
    """DS has 16 characters at most."""
    return f"{value:.10g}"[:16]
