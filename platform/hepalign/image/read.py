"""One door for images: a NIfTI file, a DICOM file, a folder of DICOM files or a zip of them."""

from __future__ import annotations

from pathlib import Path

from hepalign.errors import UsageError
from hepalign.image import archive
from hepalign.image.dicom import read_series
from hepalign.image.dicom_bytes import PREAMBLE_BYTES, is_dicom
from hepalign.image.nifti import read_nifti
from hepalign.image.nifti_header import Orientation
from hepalign.image.volume import Volume


def read_volume(
    path: Path | str,
    *,
    name: str | None = None,
    orientation: Orientation = "auto",
    report: list[str] | None = None,
    series: int | None = None,
    drop_localizers: bool = False,
    resample_tilt: bool = False,
) -> Volume:
    """Read a 3D image by what it is, not by what it is called.

    Args:
        path: NIfTI file, multi-frame DICOM file, folder of one DICOM series, or zip of one.
        name: what to call it in messages (a role, say); its base name by default.
        orientation: see `read_nifti`.
        report: warnings about the data are appended here.
        series, drop_localizers, resample_tilt: see `load_series`.

    Raises:
        UsageError: `no_such_file`.
        BadInputError: those of `read_nifti` and `load_series`.
    """
    path = Path(path)
    name = path.name if name is None else name
    if not path.exists():
        raise UsageError(f"{name}: there is no such file or folder", code="no_such_file")
    if holds_dicom(path):
        return read_series(
            path,
            name=name,
            report=report,
            series=series,
            drop_localizers=drop_localizers,
            resample_tilt=resample_tilt,
        )
    return read_nifti(path, name=name, orientation=orientation)


def holds_dicom(path: Path) -> bool:
    """Whether a folder, zip or DICOM file stands there (and not, as far as its first bytes tell, a NIfTI file)."""
    if path.is_dir() or archive.is_zip(path):
        return True
    with path.open("rb") as file:
        return is_dicom(file.read(PREAMBLE_BYTES + 4))
