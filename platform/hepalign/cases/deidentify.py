"""What is kept of a DICOM header: an allow-list of technical facts (PS3.15 Annex E, Basic Profile).

Nothing is blanked or replaced: images are written anew as NIfTI, and of the header only numbers and code words are
taken over that the Basic Profile's table leaves alone. No free text, no date, no identifier is on the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import JsonValue
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError

# Value representations of numbers and of code words with a defined vocabulary; both are checked before they are kept.
NUMBERS = frozenset({"DS", "IS", "FD", "FL", "US", "SS"})
CODES = frozenset({"CS"})
KEPT = (
    "Modality",
    "PatientPosition",
    "SliceThickness",
    "SpacingBetweenSlices",
    "KVP",
    "XRayTubeCurrent",
    "ExposureTime",
    "ReconstructionDiameter",
    "MagneticFieldStrength",
    "MRAcquisitionType",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "EchoTrainLength",
    "FlipAngle",
)
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
# Shorter words of a name stand in too many ids by chance.
_SHORTEST_NAME = 3


def kept_attributes(header: Dataset) -> dict[str, JsonValue]:
    """The technical facts of a header, by DICOM keyword; what does not look like its kind is left out."""
    kept: dict[str, JsonValue] = {}
    for keyword in KEPT:
        element = header.get_item(keyword) and header[keyword]
        if not element or element.is_empty:
            continue
        values = element.value if element.VM > 1 else [element.value]
        if element.VR in NUMBERS:
            kept[keyword] = [float(value) for value in values] if element.VM > 1 else float(values[0])
        elif element.VR in CODES and all(_CODE.fullmatch(str(value)) for value in values):
            kept[keyword] = "\\".join(str(value) for value in values)
    return kept


def check_pseudonyms(words: Iterable[str], header: Dataset) -> None:
    """Refuse ids that give the patient away.

    Raises:
        BadInputError: `identifying_id` where an id holds the patient's ID, a part of the name or the birth date.
    """
    name = re.split(r"[\^\s=,]+", str(header.get("PatientName", "")))
    given = [str(header.get(keyword, "")).strip() for keyword in ("PatientID", "PatientBirthDate", "OtherPatientIDs")]
    telling = [word.lower() for word in (*name, *given) if len(word) >= _SHORTEST_NAME]
    if any(secret in word.lower() for word in words for secret in telling):
        raise BadInputError(
            "the case's or patient's id holds the patient's own ID, name or birth date; choose a pseudonym",
            code="identifying_id",
        )
