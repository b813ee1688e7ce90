"""The DICOM objects of a folder, a zip or a file, one after the other, each walked before it is parsed."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from hepalign.errors import BadInputError, UsageError
from hepalign.image import archive
from hepalign.image.dicom_bytes import PREAMBLE_BYTES, check_bytes, is_dicom
from hepalign.image.nifti_header import MAX_VOXEL_BYTES

# Objects that travel with images and hold none: directory, reports, structures, segmentations, presentation states.
_COMPANIONS = ("", "SR", "KO", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "AU")
_USED = (
    "SOPInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "PatientID", "PatientName", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "BurnedInAnnotation", "ImageType", "PixelData",
)  # fmt: skip


def contents(source: Path, name: str) -> Iterator[bytes]:
    """The files of a folder, a zip or a file, one after the other; errors as `load_series`."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield _content(path, name)
    elif not source.is_file():
        raise UsageError(f"{name}: there is no such file or folder", code="no_such_file")
    elif archive.is_zip(source):
        yield from archive.read_members(source, name)
    else:
        yield _content(source, name)


def image_objects(source: Path, name: str, skipped: list[int]) -> Iterator[tuple[Dataset, bytes]]:
    """Every image object of a source with its bytes; the numbers of other files are appended to `skipped`.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: those of `check_bytes` and `read_members`; `bad_dicom`, `too_large` (413).
    """
    for number, content in enumerate(contents(source, name), start=1):
        if is_dicom(content[:132]):
            dataset = _parse(content, f"{name} (file {number})")
            if str(dataset.get("Modality", "")) not in _COMPANIONS and "Rows" in dataset:
                yield dataset, content
                continue
        skipped.append(number)


def _content(path: Path, name: str) -> bytes:
    """A DICOM file whole; of another file (viewers travel on export discs) only the start."""
    with path.open("rb") as file:
        start = file.read(PREAMBLE_BYTES + 4)
        if not is_dicom(start):
            return start
        if path.stat().st_size > MAX_VOXEL_BYTES:
            raise BadInputError(f"{name}: more than {MAX_VOXEL_BYTES >> 20} MiB", code="too_large", status=413)
        return start + file.read()


def _parse(content: bytes, name: str) -> Dataset:
    check_bytes(content, name)
    try:
        dataset = pydicom.dcmread(BytesIO(content))
        # pydicom converts a value when it is first asked for: ask here.
        for keyword in _USED:
            dataset.get(keyword)
    except Exception:  # noqa: BLE001  pydicom raises whatever the bytes led it to, and may quote them: no cause is kept
        raise BadInputError(f"{name}: a DICOM file that cannot be parsed", code="bad_dicom") from None
    return dataset
