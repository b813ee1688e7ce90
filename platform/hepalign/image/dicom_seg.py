"""Labels that a DICOM segmentation object (SEG, PS3.3 A.51) carries, on the SEG's own grid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError
from hepalign.image.dicom import SeriesIdentity
from hepalign.image.dicom_bytes import check_bytes, is_dicom
from hepalign.image.dicom_files import contents
from hepalign.image.dicom_planes import RAS_LPS
from hepalign.image.geometry import Geometry
from hepalign.image.nifti_header import MAX_VOXELS, check_grid
from hepalign.image.volume import Volume

SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# What segments of our structures are called, by label or by coded meaning (SNOMED CT's words among them).
STRUCTURE_WORDS = {
    "liver": r"\bliver\b|hepar",
    "tumour": r"tumou?r|lesion|neoplasm|metasta|\bmass\b|carcinoma|\bhcc\b",
    "ablation": r"ablat|necros|coagul",
    "probe": r"probe|needle|electrode|antenna|applicator|artefact|artifact",
}
_FRACTION = 0.5


@dataclass(frozen=True, eq=False)
class SegmentedLabels:
    """A label map (1, 2 … in the order of the segments) and whose it is: patient data, to be compared only."""

    volume: Volume
    identity: SeriesIdentity


def read_segmentation(source: Path | str, structure: str, *, name: str) -> SegmentedLabels:
    """The segments of one structure from a SEG file, or from a folder or zip that holds exactly one.

    A segment belongs to `structure` when its label or its coded type says so; the only segment of an object is taken
    whatever it is called. Fractional segments are cut at one half.

    Args:
        source: file, folder or zip.
        structure: `tumour` (each segment keeps a number of its own), `liver`, `ablation` or `probe` (they become one).
        name: what to call it in messages; nothing inside the object is ever told.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: those of `check_bytes` and `read_members`; `no_segmentation` where there is not exactly one,
            `segment_unclear` where no segment or more than one can be meant, `bad_segmentation`, `too_large` (413).
    """
    content = _only_segmentation(Path(source), name)
    try:
        with pydicom_config.disable_value_validation():
            seg = hd.seg.Segmentation.from_dataset(pydicom.dcmread(BytesIO(content)), copy=False)
            numbers = _meant(seg, structure)
            volume = _label_map(seg, numbers, structure, name) if numbers else None
            identity = _identity(seg)
    except BadInputError:
        raise
    except Exception:  # noqa: BLE001  highdicom raises whatever the object led it to, and may quote it: no cause is kept
        message = f"{name}: a DICOM segmentation that does not make a volume; export it again"
        raise BadInputError(message, code="bad_segmentation") from None
    if volume is None:
        message = f"{name}: none of its {len(seg.segment_numbers)} segments is called a {structure}; "
        raise BadInputError(message + "export that segment alone", code="segment_unclear")
    check_grid(volume.geometry.affine, volume.geometry.shape, name)
    return SegmentedLabels(volume, identity)


def _only_segmentation(source: Path, name: str) -> bytes:
    found = []
    for number, content in enumerate(contents(source, name), start=1):
        if is_dicom(content[:132]):
            check_bytes(content, f"{name} (file {number})")
            if _class_of(content) in SEGMENTATION_CLASSES:
                found.append(content)
    if len(found) != 1:
        message = (
            f"{name}: {len(found)} DICOM segmentations in it, not one; send the SEG object itself, or a NIfTI mask"
        )
        raise BadInputError(message, code="no_segmentation")
    return found[0]


def _class_of(content: bytes) -> str:
    try:
        return str(pydicom.dcmread(BytesIO(content), specific_tags=["SOPClassUID"]).get("SOPClassUID", ""))
    except Exception:  # noqa: BLE001  as above
        return ""


def _meant(seg: hd.seg.Segmentation, structure: str) -> list[int]:
    """Numbers of the structure's segments; the object's only segment is always meant."""
    numbers = [int(number) for number in seg.segment_numbers]
    words = re.compile(STRUCTURE_WORDS[structure], re.IGNORECASE)
    called = [number for number in numbers if words.search(_called(seg.get_segment_description(number)))]
    if structure == "liver":
        # a liver's lesions are no liver
        other = re.compile(STRUCTURE_WORDS["tumour"], re.IGNORECASE)
        called = [n for n in called if not other.search(_called(seg.get_segment_description(n)))]
    return called or (numbers if len(numbers) == 1 else [])


def _called(segment: Dataset) -> str:
    codes = [item.get("CodeMeaning", "") for item in segment.get("SegmentedPropertyTypeCodeSequence") or []]
    return " ".join([str(segment.get("SegmentLabel", "")).replace("_", " "), *map(str, codes)])


def _label_map(seg: hd.seg.Segmentation, numbers: list[int], structure: str, name: str) -> Volume:
    planned = seg.get_volume_geometry()
    if planned is None:
        raise ValueError("frames that form no volume")
    if int(np.prod(planned.spatial_shape, dtype=np.int64)) > MAX_VOXELS:
        raise BadInputError(f"{name}: more voxels than are read", code="too_large", status=413)
    labels = np.zeros(planned.spatial_shape, np.uint8)
    for value, number in enumerate(numbers, start=1):
        mask = seg.get_volume(segment_numbers=[number]).array[..., 0] >= _FRACTION
        labels[mask & (labels == 0)] = value if structure == "tumour" else 1
    # highdicom counts (slice, row, column) in LPS, a volume (column, row, slice) in RAS
    affine = RAS_LPS @ np.asarray(planned.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    data = np.ascontiguousarray(labels.transpose(2, 1, 0))
    return Volume(data, Geometry((data.shape[0], data.shape[1], data.shape[2]), affine))


def _identity(seg: Dataset) -> SeriesIdentity:
    keywords = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
    return SeriesIdentity(*(str(seg.get(keyword, "")).strip() for keyword in keywords))
