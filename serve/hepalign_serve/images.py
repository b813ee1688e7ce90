"""From received bytes to a stored image that inference can use."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hepalign.errors import BadInputError
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume
from hepalign_serve.payload import Received
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Image

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_NIFTI_SIZES = (
    (348).to_bytes(4, "little"),
    (348).to_bytes(4, "big"),
    (540).to_bytes(4, "little"),
    (540).to_bytes(4, "big"),
)
_ZIP_TYPES = ("application/zip", "application/x-zip-compressed", "application/dicom+zip")


def accept(received: Received, case_id: str, role: str, content_type: str, data_folder: Path) -> Image:
    """Checks the bytes, moves them to their place and describes them.

    Raises:
        RequestError: 415 `unsupported_media` when the bytes are no NIfTI, DICOM zip or (probe mask) JSON.
        BadInputError: what the readers find; the received file is removed.
    """
    try:
        suffix = _kind(received.path, role, content_type)
        facts: dict[str, Any] = {"kind": suffix}
        if suffix == ".json":
            facts |= _described_json(received.path)
        else:
            facts |= _described(read_nifti(received.path, name=role))
        place = data_folder / "cases" / case_id / "images" / f"{role}-{received.sha256[:16]}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        received.path.replace(place)
    finally:
        received.path.unlink(missing_ok=True)
    return Image(
        case_id=case_id, role=role, path=str(place.relative_to(data_folder)), sha256=received.sha256,
        bytes_stored=received.size, facts=facts, created=time.time(),
    )  # fmt: skip


def _kind(path: Path, role: str, content_type: str) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise BadInputError(f"{role}: the file is empty", code="empty_file")
    if head.startswith(_GZIP):
        return ".nii.gz"
    if head.startswith(_NIFTI_SIZES):
        return ".nii"
    if role == "ict_probe_mask" and head.lstrip()[:1] == b"{":
        return ".json"
    if head.startswith(_ZIP) and content_type.partition(";")[0].strip() in _ZIP_TYPES:
        return ".zip"
    message = f"{role}: send NIfTI bytes, or a DICOM series as application/zip"
    raise RequestError(message, code="unsupported_media", status=415)


def _described(volume: Volume) -> dict[str, Any]:
    geometry = volume.geometry
    return {"shape": list(geometry.shape), "spacing_mm": [round(s, 4) for s in geometry.spacing_mm], "warnings": []}


def _described_json(path: Path) -> dict[str, Any]:
    try:
        shape = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInputError("ict_probe_mask: this is not JSON", code="bad_probe_mask") from error
    return {"form": sorted(shape) if isinstance(shape, dict) else []}
