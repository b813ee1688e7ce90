"""From received bytes to a stored image that inference can use."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepalign.errors import BadInputError
from hepalign.image.checks import check_ct, check_mr
from hepalign.image.dicom import DicomSeries, load_series
from hepalign.image.nifti import read_nifti, write_nifti
from hepalign.image.nifti_header import Orientation
from hepalign.image.volume import Volume
from hepalign_serve.payload import Received, storage_error
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Image
from hepalign_serve.vault import Vault

PROBE_MASK = "ict_probe_mask"
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_NIFTI = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
_ZIP_TYPES = ("application/zip", "application/x-zip-compressed", "application/dicom+zip")
_CT_ROLES, _MR_ROLES = ("pct", "ict"), ("pmr",)


@dataclass(frozen=True)
class Wishes:
    """What the sender says about an image that would be refused otherwise."""

    orientation: Orientation = "auto"
    drop_localizers: bool = False
    resample_tilt: bool = False


def accept(received: Received, folder: Path, role: str, content_type: str, wishes: Wishes, vault: Vault) -> Image:
    """Checks the bytes, moves them to their place and describes them; on any error nothing is left behind.

    Args:
        received: the body on disk; it is gone afterwards.
        folder: the case's folder.
        role: a Case name.
        content_type: as sent.
        wishes: as sent.
        vault: keeps a DICOM series' identity.

    Raises:
        RequestError: 415 `unsupported_media` when the bytes are no NIfTI, DICOM zip or (probe mask) JSON;
            503 or 507 when they cannot be stored.
        BadInputError: what the readers find.
    """
    warnings: list[str] = []
    try:
        suffix = _kind(received.path, role, content_type)
        stem = f"{role}-{received.sha256[:16]}"
        facts: dict[str, Any] = {"warnings": warnings}
        (folder / "images").mkdir(exist_ok=True)
        if suffix == ".json":
            place = folder / "images" / f"{stem}.json"
            _check_json(received.path)
            received.path.replace(place)
        elif suffix == ".zip":
            place = folder / "images" / f"{stem}.nii.gz"
            series = _series(received.path, role, warnings, wishes)
            facts |= _described(series.volume, role, warnings)
            facts |= vault.keep(folder / "images" / f"{stem}.dicom", series)
            write_nifti(series.volume, place)
        else:
            place = folder / "images" / f"{stem}{suffix}"
            volume = read_nifti(received.path, name=role, orientation=wishes.orientation)
            facts |= _described(volume, role, warnings)
            if wishes.orientation == "auto":
                received.path.replace(place)
            else:
                write_nifti(volume, place)
    except OSError as error:
        raise storage_error(error) from error
    finally:
        received.path.unlink(missing_ok=True)
    return Image(
        case_id=folder.name, role=role, path=f"cases/{folder.name}/images/{place.name}", sha256=received.sha256,
        bytes_stored=place.stat().st_size, facts=facts, created=time.time(),
    )  # fmt: skip


def _series(path: Path, role: str, warnings: list[str], wishes: Wishes) -> DicomSeries:
    return load_series(
        path,
        name=role,
        report=warnings,
        drop_localizers=wishes.drop_localizers,
        resample_tilt=wishes.resample_tilt,
    )


def _kind(path: Path, role: str, content_type: str) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise BadInputError(f"{role}: the file is empty", code="empty_file")
    if head.startswith(_GZIP):
        return ".nii.gz"
    if head.startswith(_NIFTI):
        return ".nii"
    if role == PROBE_MASK and head.lstrip()[:1] == b"{":
        return ".json"
    if head.startswith(_ZIP) and content_type.partition(";")[0].strip() in _ZIP_TYPES:
        return ".zip"
    message = f"{role}: send NIfTI bytes, or a DICOM series as application/zip"
    raise RequestError(message, code="unsupported_media", status=415)


def _described(volume: Volume, role: str, warnings: list[str]) -> dict[str, Any]:
    if role in _CT_ROLES:
        check_ct(volume, role, warnings)
    elif role in _MR_ROLES:
        check_mr(volume, role)
    geometry = volume.geometry
    return {"shape": list(geometry.shape), "spacing_mm": [round(s, 4) for s in geometry.spacing_mm]}


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInputError("ict_probe_mask: this is not JSON", code="bad_probe_mask") from error
