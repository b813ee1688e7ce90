"""Which series an export holds, for a person to choose from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError, UsageError
from hepalign.image.dicom_files import image_objects

# What of a long list one message holds.
MOST_LISTED = 20
_CODE_LENGTH = 8
_KEPT = (
    "SOPInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "ImageType", "SeriesNumber", "PatientID",
    "PatientName",
)  # fmt: skip


@dataclass(frozen=True)
class SeriesSummary:
    """What tells one series of an export from another, and nothing of the patient.

    Args:
        number: what `load_series` takes to choose it; counted from 1 in the order of the scanner's series numbers.
        modality: `CT`, `MR` …
        images: how many slices.
        rows, columns: pixels of a slice (of the largest one).
        localizer: whether it is a scout.
    """

    number: int
    modality: str
    images: int
    rows: int
    columns: int
    localizer: bool

    def __str__(self) -> str:
        kind = f"{self.modality} localizer" if self.localizer else self.modality
        return f"{self.number}: {kind}, {self.images} images of {self.rows} × {self.columns}"


def list_series(source: Path | str, *, name: str | None = None) -> tuple[SeriesSummary, ...]:
    """Every series of images in a folder, zip or file, for a person to choose from; the pixels are not decoded.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: as `load_series`, as far as single files go.
    """
    source = Path(source)
    return tuple(found.summary for found in _found(source, source.name if name is None else name))


def chosen_series(source: Path, name: str, number: int) -> str:
    """The Series Instance UID of a series by its number.

    Raises:
        UsageError: `no_such_series`; and as `list_series`.
    """
    found = _found(source, name)
    if not 1 <= number <= len(found):
        raise UsageError(f"{name}: there is no series {number}; it holds {_listed(found)}", code="no_such_series")
    return found[number - 1].uid


def several_series(source: Path, name: str) -> BadInputError:
    """The refusal of a source with more than one series: `mixed_patients` where they are not one patient's, else
    `mixed_series` with the list to choose from."""
    found = _found(source, name)
    patients = {patient for series in found for patient in series.patients}
    if len(patients) > 1:
        message = f"{name}: images of {len(patients)} patients; send one series of one patient"
        return BadInputError(message, code="mixed_patients")
    message = f"{name}: {len(found)} series in it, {_listed(found)}; send one of them, or say which by its number"
    return BadInputError(message, code="mixed_series")


def series_of(dataset: Dataset) -> str:
    """The Series Instance UID, empty where there is none."""
    return str(dataset.get("SeriesInstanceUID", "")).strip()


@dataclass(frozen=True)
class _Found:
    summary: SeriesSummary
    uid: str
    patients: frozenset[tuple[str, str]]


def _found(source: Path, name: str) -> list[_Found]:
    """Every series, in the order of series number and UID."""
    series: dict[str, dict[str, Dataset]] = {}
    with pydicom_config.disable_value_validation():
        for dataset, content in image_objects(source, name, []):
            header = Dataset()
            for keyword in _KEPT:
                if keyword in dataset:
                    header[keyword] = dataset[keyword]
            instance = str(header.get("SOPInstanceUID", "")) or hashlib.sha256(content).hexdigest()
            series.setdefault(series_of(dataset), {})[instance] = header
        objects = {uid: list(headers.values()) for uid, headers in series.items()}
        order = sorted(objects, key=lambda uid: (_number(objects[uid][0].get("SeriesNumber")), uid))
        return [_Found(_summary(n, objects[u]), u, _patients(objects[u])) for n, u in enumerate(order, start=1)]


def _summary(number: int, headers: list[Dataset]) -> SeriesSummary:
    modality = str(headers[0].get("Modality", "")).strip()
    return SeriesSummary(
        number,
        # shown: a code word of the standard and nothing else
        modality if modality.isalnum() and modality.isupper() and len(modality) <= _CODE_LENGTH else "?",
        sum(max(_number(header.get("NumberOfFrames")), 1) for header in headers),
        max(_number(header.get("Rows")) for header in headers),
        max(_number(header.get("Columns")) for header in headers),
        any("LOCALIZER" in str(header.get("ImageType", "")).upper() for header in headers),
    )


def _patients(headers: list[Dataset]) -> frozenset[tuple[str, str]]:
    return frozenset((str(h.get("PatientID", "")).strip(), str(h.get("PatientName", "")).strip()) for h in headers)


def _number(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0


def _listed(found: list[_Found]) -> str:
    shown = "; ".join(str(series.summary) for series in found[:MOST_LISTED])
    return shown if len(found) <= MOST_LISTED else f"{shown}; and {len(found) - MOST_LISTED} more"
