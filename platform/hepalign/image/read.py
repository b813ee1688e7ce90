"""One door for images: a NIfTI file, a DICOM file, a folder of DICOM files or a zip of them."""

from __future__ import annotations

from pathlib import Path

from hepalign.errors import UsageError
from hepalign.image.nifti import read_nifti
from hepalign.image.nifti_header import Orientation
from hepalign.image.volume import Volume

_ZIP_MAGIC = b"PK\x03\x04"
_DICOM_MAGIC_OFFSET = 128


def read_volume(path: Path | str, *, orientation: Orientation = "auto", report: list[str] | None = None) -> Volume:
    """Read a 3D image by what it is, not by what it is called.

    Args:
        path: NIfTI file, DICOM file, folder of one DICOM series, or zip of one.
        orientation: see `read_nifti`.
        report: warnings about the data are appended here.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: those of `read_nifti` and `read_series`.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path.name}: there is no such file or folder", code="no_such_file")
    if path.is_dir() or _starts_dicom(path):
        from hepalign.image.dicom import read_series

        return read_series(path, report=report)
    return read_nifti(path, orientation=orientation)


def _starts_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_DICOM_MAGIC_OFFSET + 4)
    return start[:4] == _ZIP_MAGIC or start[_DICOM_MAGIC_OFFSET:] == b"DICM"
