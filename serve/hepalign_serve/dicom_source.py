"""What of a DICOM source goes into what is made from it: the patient and the study, its frame, its instances."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.uid import UID

from hepalign.image.dicom import DicomSeries

NOTICE = "RESEARCH USE ONLY"
MANUFACTURER, MODEL = "Hepalign", "hepalign"
_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientIDsSequence", "OtherPatientNames",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
)  # fmt: skip
_STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "StudyDescription", "ProcedureCodeSequence", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
# The patient and general study modules' attributes that must be there, if only empty.
_TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
           "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
_UIDS = {"StudyInstanceUID": "study", "SeriesInstanceUID": "series", "FrameOfReferenceUID": "frame"}
_ZONE = "TimezoneOffsetFromUTC"
_FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition", "SeriesInstanceUID")
# What a status puts before every description: a PACS shows it in its list of series.
_WARNED = {"accept": "", "review": "REVIEW - "}
_REJECTED = "REJECTED: DO NOT USE - "


def kept(series: DicomSeries) -> Dataset:
    """What serving keeps of a series, to be sealed: whose it is, and which instances its slices are."""
    first, source = series.headers[0], Dataset()
    for keyword in ("SpecificCharacterSet", _ZONE, *_PATIENT, *_STUDY, *_FRAME):
        _copy(first, source, keyword)
    # An anonymiser may have emptied them; what goes back from one series still belongs into one study and one frame.
    for keyword, part in _UIDS.items():
        if not source.get(keyword):
            setattr(source, keyword, uid_of(series.identity.series or _voxels_sha256(series), part))
    source.SourceImageSequence = [_reference(header) for header in series.headers]
    return source


def patient_and_study(source: Dataset) -> Dataset:
    """The modules by which a PACS files, as they came; what must be there and is not, empty."""
    made = Dataset()
    for keyword in ("SpecificCharacterSet", *_PATIENT, *_STUDY):
        _copy(source, made, keyword)
    for keyword in _TYPE_2:
        if keyword not in made:
            setattr(made, keyword, "")
    return made


def zone_of(source: Dataset) -> tzinfo | None:
    """The zone of the source's dates and times; None where it names none: they are local then."""
    try:
        return datetime.strptime(str(source.get(_ZONE, "")), "%z").tzinfo
    except ValueError:
        return None


def instances(source: Dataset, slices: int) -> list[Dataset]:
    """References to the source's instances, one a slice; none where they are not one a slice (multi-frame)."""
    found = list(source.SourceImageSequence)
    whole = len(found) == slices and all(item.ReferencedSOPInstanceUID for item in found)
    return found if whole else []


def described(label: str, result: Mapping[str, Any]) -> str:
    """A series' description, at most 64 characters: a reject never looks like an accept."""
    return f"{warned(result)}{label} - {NOTICE}"


def warned(result: Mapping[str, Any]) -> str:
    """What the result's status puts before its name; no status is no accept."""
    return _WARNED.get(result.get("quality", {}).get("status", ""), _REJECTED)


def uid_of(*parts: str) -> UID:
    """The same UID for the same parts: a name-based UUID below the root that DICOM gives to UUIDs."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(parts)).int}")


def release_name(result: Mapping[str, Any]) -> str:
    """The release that made a result."""
    release = result.get("release", {})
    return f"{release.get('name', '')} {release.get('version', '')}".strip() or "unknown"


def _voxels_sha256(series: DicomSeries) -> str:
    """What tells two series apart that bear no UID: no two patients' results may share one."""
    return hashlib.sha256(np.asarray(series.volume.data).tobytes()).hexdigest()


def _copy(source: Dataset, target: Dataset, keyword: str) -> None:
    if keyword in source:
        element: DataElement = source[keyword]
        target.add(element)


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.get("SOPClassUID", "")
    item.ReferencedSOPInstanceUID = header.get("SOPInstanceUID", "")
    return item
