"""Results as DICOM: derived CT and MR series and segmentations on the iCT's frame of reference."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from hepalign.image.volume import Volume
from hepalign_serve.problems import RequestError

NOTICE = "RESEARCH USE ONLY"
MANUFACTURER, MODEL = "Hepalign", "hepalign"
# What of the source a PACS files by: the patient and general study modules.
KEPT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
_TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
           "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
DESCRIPTIONS = {
    "pct_on_ict": ("CT", "pCT on iCT", "planning CT resampled once onto the intra-procedural CT"),
    "pmr_on_ict": ("MR", "pMR on iCT", "planning MR resampled once onto the intra-procedural CT"),
    "inpct": ("CT", "iCT inpainted", "probe and artefact replaced by SYNTHETIC voxels, see the inpainted mask"),
    "labels_on_ict": ("SEG", "labels on iCT", "labels carried onto the intra-procedural CT"),
    "inpainted_mask": ("SEG", "synthetic voxels", "voxels of the inpainted CT that are synthetic"),
}


def export(name: str, volume: Volume, names: dict[int, str], context: Dataset, release: str) -> bytes:
    """A zip of the DICOM objects of one artifact.

    Args:
        name: the artifact without its ending; the keys of `DESCRIPTIONS`.
        volume: on the iCT's grid.
        names: what a label map's values mean; unused for images.
        context: the iCT's header, as it came.
        release: what made it, for the equipment.

    Raises:
        RequestError: 422 `no_dicom_form` for what has none (fields, JSON, pictures).
    """
    if name not in DESCRIPTIONS:
        raise RequestError(
            "this artifact has no DICOM form: ask without format=dicom", code="no_dicom_form", status=422
        )
    modality, label, derivation = DESCRIPTIONS[name]
    if modality == "SEG":
        carrier = derived_series(volume.with_data(np.zeros(volume.geometry.shape, np.int16)), context, "CT", "", "", "")
        objects: Sequence[Dataset] = [segmentation(volume, names, carrier, label, release)]
    else:
        objects = derived_series(volume, context, modality, label, derivation, release)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for number, made in enumerate(objects):
            content = io.BytesIO()
            dcmwrite(content, made, enforce_file_format=True)
            archive.writestr(f"{name}/{number:04d}.dcm", content.getvalue())
    return packed.getvalue()


def no_dicom_form() -> RequestError:
    """Fields, JSON and pictures have none."""
    message = "this artifact has no DICOM form: ask without format=dicom"
    return RequestError(message, code="no_dicom_form", status=422)


def derived_series(
    volume: Volume, context: Dataset, modality: str, label: str, derivation: str, release: str
) -> list[Dataset]:
    """One object a slice along the last axis; CT as HU, MR scaled to 16 bit with its slope told."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.affine
    pixels, slope, intercept = _stored(volume, modality)
    series_uid, made = generate_uid(prefix=None), datetime.now(UTC)
    common = _common(context, modality, label, derivation, release, made)
    common.SeriesInstanceUID = series_uid
    spacing, direction = volume.geometry.spacing_mm, affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    common.Rows, common.Columns = pixels.shape[1], pixels.shape[0]
    common.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    common.SliceThickness = _decimal(spacing[2])
    common.ImageOrientationPatient = [_decimal(v) for v in (*direction[:, 0], *direction[:, 1])]
    common.RescaleSlope, common.RescaleIntercept = _decimal(slope), _decimal(intercept)
    slices: list[Dataset] = []
    for k in range(pixels.shape[2]):
        one = FileDataset("", {}, file_meta=_meta(common.SOPClassUID), preamble=b"\0" * 128)
        one.update(common)
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
        one.InstanceNumber = k + 1
        one.ImagePositionPatient = [_decimal(v) for v in affine[:3, 3] + k * affine[:3, 2]]
        one.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
        slices.append(one)
    return slices


def segmentation(
    volume: Volume, names: dict[int, str], carrier: Sequence[Dataset], label: str, release: str
) -> Dataset:
    """A binary SEG with one segment a label value."""
    data = np.asarray(volume.data)
    values = sorted(names) if names else [1]
    masks = np.stack([(data == v) if names else (data > 0) for v in values], axis=-1)
    # highdicom wants (slice, row, column, segment).
    frames = np.ascontiguousarray(masks.transpose(2, 1, 0, 3)).astype(np.uint8)
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=names.get(value, label),
            segmented_property_category=_coded(names.get(value, label))[0],
            segmented_property_type=_coded(names.get(value, label))[1],
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=MODEL, family=codes.DCM.ArtificialIntelligence, version=release or "unknown"
            ),
        )
        for number, value in enumerate(values, start=1)
    ]
    made = hd.seg.Segmentation(
        source_images=list(carrier),
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(prefix=None),
        series_number=9900,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=release or "unknown",
        device_serial_number="0",
        series_description=f"{label} - {NOTICE}",
        omit_empty_frames=False,
    )
    made.ContentQualification = "RESEARCH"
    return made


def _common(context: Dataset, modality: str, label: str, derivation: str, release: str, made: datetime) -> Dataset:
    common = Dataset()
    for name in KEPT:
        if name in context:
            setattr(common, name, context[name].value)
    for name in _TYPE_2:
        if name not in common:
            setattr(common, name, "")
    common.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    common.Modality = modality
    common.FrameOfReferenceUID, common.PositionReferenceIndicator = context.FrameOfReferenceUID, ""
    common.ImageType = ["DERIVED", "SECONDARY", "RESAMPLED"]
    common.SeriesNumber, common.SeriesDescription = 9800, f"{label} - {NOTICE}"
    common.DerivationDescription = f"{derivation}. {NOTICE}."
    common.ImageComments = NOTICE
    common.ContentQualification = "RESEARCH"
    common.BurnedInAnnotation = "NO"
    common.LossyImageCompression = "00"
    common.Manufacturer, common.ManufacturerModelName = MANUFACTURER, MODEL
    common.ContentDate = common.SeriesDate = made.strftime("%Y%m%d")
    common.ContentTime = common.SeriesTime = made.strftime("%H%M%S")
    common.PatientPosition = context.get("PatientPosition", "HFS")
    common.AcquisitionNumber = common.KVP = None
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.BitsAllocated, common.BitsStored, common.HighBit = 16, 16, 15
    common.PixelRepresentation = 1 if modality == "CT" else 0
    if modality == "CT":
        common.RescaleType = "HU"
    else:
        common.ScanningSequence, common.SequenceVariant, common.ScanOptions = "RM", "NONE", ""
        common.MRAcquisitionType = common.EchoTime = common.EchoTrainLength = common.RepetitionTime = ""
        del common.KVP
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept("109103", "DCM", "Modifying Equipment")]
    equipment.Manufacturer, equipment.ManufacturerModelName = MANUFACTURER, MODEL
    equipment.SoftwareVersions = release or "unknown"
    equipment.ContributionDescription = NOTICE
    common.ContributingEquipmentSequence = [equipment]
    return common


def _stored(volume: Volume, modality: str) -> tuple[NDArray[np.generic], float, float]:
    data = volume.as_float()
    if modality == "CT":
        return np.clip(np.rint(data), -32768, 32767).astype("<i2"), 1.0, 0.0
    low, high = float(data.min()), float(data.max())
    slope = float(f"{max(high - low, 1e-6) / 65535:.9g}")
    return np.clip(np.rint((data - low) / slope), 0, 65535).astype("<u2"), slope, low


def _meta(sop_class: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _decimal(value: float) -> str:
    """DS has 16 characters at most."""
    return f"{value:.10g}"[:16]


def _coded(name: str) -> tuple[hd.sr.CodedConcept, hd.sr.CodedConcept]:
    """Category and type of a segment: the liver, a tumour, or synthetic voxels."""
    if name.startswith("liver"):
        found = codes.SCT.AnatomicalStructure, codes.SCT.Liver
    elif name.startswith("tumour"):
        found = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    else:
        found = codes.SCT.SpatialAndRelationalConcept, codes.DCM.ImageArtifacts
    category, kind = (hd.sr.CodedConcept(code.value, code.scheme_designator, code.meaning) for code in found)
    return category, kind
