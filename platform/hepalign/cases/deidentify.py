"""What is kept of a DICOM header: an allow-list of technical facts (PS3.15 Annex E, Basic Profile).

Nothing is blanked or replaced: images are written anew as NIfTI, and of the header only numbers and code words are
taken over that the Basic Profile's table leaves alone. No free text, no date, no identifier is on the list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from pydantic import JsonValue
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from hepalign.errors import BadInputError

# Numbers are kept as numbers.
NUMBERS = (
    "SliceThickness", "SpacingBetweenSlices", "KVP", "XRayTubeCurrent", "ExposureTime", "ReconstructionDiameter",
    "MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "EchoTrainLength", "FlipAngle",
)  # fmt: skip
# Of code words only the terms that the standard (for CT's ScanOptions the vendors) defines: a name is none of them.
CODES = {
    "Modality": {"CT", "MR"},
    "PatientPosition": {f"{end}F{side}" for end in "HF" for side in ("S", "P", "DR", "DL")},
    "MRAcquisitionType": {"2D", "3D"},
    "ScanningSequence": {"SE", "IR", "GR", "EP", "RM"},
    "SequenceVariant": {"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"},
    "ScanOptions": {
        "PER", "RG", "CG", "PPG", "FC", "PFF", "PFP", "SP", "FS", "AXIAL", "AXIAL MODE", "HELICAL", "HELICAL MODE",
        "HELIX", "SPIRAL", "SEQUENTIAL", "CINE", "CINE MODE", "SCOUT MODE",
    },
}  # fmt: skip
KEPT = (*CODES, *NUMBERS)
# Shorter words of a name stand in too many ids by chance.
_SHORTEST_NAME = 3


def kept_attributes(header: Dataset) -> dict[str, JsonValue]:
    """The technical facts of a header, by DICOM keyword; what is no finite number or no term of its own is left out."""
    kept: dict[str, JsonValue] = {}
    for keyword in KEPT:
        words = _words(header, keyword)
        if not words:
            continue
        if keyword in NUMBERS:
            numbers = [_number(word) for word in words]
            if None not in numbers:
                kept[keyword] = [*numbers] if len(numbers) > 1 else numbers[0]
        elif all(word in CODES[keyword] for word in words):
            kept[keyword] = "\\".join(words)
    return kept


def _words(header: Dataset, keyword: str) -> list[str]:
    # validation would quote what it finds invalid in a warning
    with pydicom_config.disable_value_validation():
        value = header.get(keyword)
        values = value if isinstance(value, MultiValue) else [value]
        return [str(one).strip() for one in values if one not in (None, "")]


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_pseudonyms(words: Iterable[str], header: Dataset) -> None:
    """Refuse ids that give the patient away.

    Raises:
        BadInputError: `identifying_id` where an id holds the patient's ID, a part of the name or the birth date.
    """
    name = [part for word in _words(header, "PatientName") for part in re.split(r"[\^\s=,]+", word)]
    given = [
        word for keyword in ("PatientID", "PatientBirthDate", "OtherPatientIDs") for word in _words(header, keyword)
    ]
    telling = [word.lower() for word in (*name, *given) if len(word) >= _SHORTEST_NAME]
    if any(secret in word.lower() for word in words for secret in telling):
        raise BadInputError(
            "the case's or patient's id holds the patient's own ID, name or birth date; choose a pseudonym",
            code="identifying_id",
        )
