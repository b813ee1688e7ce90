"""From received bytes to a stored image that inference can use."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepalign.cases import s3
from hepalign.cases.probe import read_probe_mask, voxel_mask
from hepalign.cases.store import Shelf
from hepalign.errors import BadInputError
from hepalign.image.checks import check_ct, check_mr
from hepalign.image.dicom import DicomSeries, load_series
from hepalign.image.intensity import coarse_body_mask
from hepalign.image.nifti import read_geometry, read_nifti, write_nifti
from hepalign.image.nifti_header import Orientation
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume
from hepalign_serve.drift import statistics_of
from hepalign_serve.payload import Received
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Image
from hepalign_serve.shelf import storing
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

    @property
    def mark(self) -> str:
        """The end of an image's name: the same bytes read another way are another image, and jobs may use both."""
        said: list[str] = [self.orientation] if self.orientation != "auto" else []
        said += [word for word in ("drop_localizers", "resample_tilt") if getattr(self, word)]
        return "".join(f"-{word}" for word in said)


def accept(
    received: Received, shelf: Shelf, case_id: str, role: str, content_type: str, wishes: Wishes, vault: Vault
) -> tuple[Image, bool]:
    """Checks the bytes, puts them in their place and describes them; on any error nothing new is left behind.

    Args:
        received: the body on disk; it is gone afterwards.
        shelf: where images are kept.
        case_id: whose image it is.
        role: a Case name.
        content_type: as sent.
        wishes: as sent.
        vault: keeps a DICOM series' identity.

    Returns:
        The image, and whether it was there before: jobs may use it then, whatever becomes of this request.

    Raises:
        RequestError: 415 `unsupported_media` when the bytes are no NIfTI, DICOM zip or (probe mask) JSON;
            503 or 507 when they cannot be stored.
        BadInputError: what the readers find.
    """
    stem = shelf.folder / f"cases/{case_id}/images/{role}-{received.sha256[:16]}{wishes.mark}"
    try:
        with storing():
            suffix = _kind(received.path, role, content_type)
            _make_folders(shelf, case_id)
            place = stem.with_suffix(".nii.gz" if suffix == ".zip" else suffix)
            key = str(place.relative_to(shelf.folder))
            known = _is_there(key, shelf)
            try:
                facts = _put(received, place, role, suffix, wishes, vault)
                for path in (place, *beside(place)):
                    if path.is_file():
                        shelf.keep(str(path.relative_to(shelf.folder)))
            except BaseException:
                if not known:
                    discard(key, shelf)
                raise
    finally:
        received.path.unlink(missing_ok=True)
    image = Image(
        case_id=case_id, role=role, path=key, sha256=received.sha256, bytes_stored=place.stat().st_size, facts=facts,
        created=time.time(),
    )  # fmt: skip
    return image, known


def discard(key: str, shelf: Shelf) -> None:
    """Removes an image that was not accepted and what lies beside it, here and where they are kept."""
    keys = [str(path) for path in (Path(key), *beside(Path(key)))]
    for one in keys:
        (shelf.folder / one).unlink(missing_ok=True)
    if shelf.url is not None:
        s3.erase(shelf.url.bucket, [shelf.url.key(one) for one in keys])


def _is_there(key: str, shelf: Shelf) -> bool:
    try:
        shelf.fetch(key)
    except BadInputError:
        return False
    return True


def beside(place: Path) -> tuple[Path, Path]:
    """Where an image's sealed DICOM identity lies, and the iCT's body: a mask is checked without the iCT's voxels."""
    stem = place.with_name(place.name.partition(".")[0])
    return stem.with_suffix(".dicom"), stem.with_suffix(".body.nii.gz")


def _make_folders(shelf: Shelf, case_id: str) -> None:
    # One by one: a store that is not mounted is an error, not a reason to begin another one.
    folder = shelf.folder / "cases" / case_id
    folder.mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)


def _put(received: Received, place: Path, role: str, suffix: str, wishes: Wishes, vault: Vault) -> dict[str, Any]:
    """Writes the image to its place, and what lies beside it; what is known of it."""
    sealed, body = beside(place)
    warnings: list[str] = []
    facts: dict[str, Any] = {"warnings": warnings}
    if suffix == ".json":
        _check_json(received.path)
        received.path.replace(place)
        return facts
    if suffix == ".zip":
        series = _series(received.path, role, warnings, wishes)
        volume = series.volume
        facts |= _described(volume, role, warnings)
        facts |= vault.keep(sealed, series)
        write_nifti(volume, place)
    else:
        volume = read_nifti(received.path, name=role, orientation=wishes.orientation)
        facts |= _described(volume, role, warnings)
        if wishes.orientation == "auto":
            received.path.replace(place)
        else:
            write_nifti(volume, place)
    if role == "ict":
        write_nifti(coarse_body_mask(volume), body)
    return facts


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
    geometry = volume.geometry
    facts: dict[str, Any] = {
        "shape": list(geometry.shape),
        "spacing_mm": [round(s, 4) for s in geometry.spacing_mm],
    }
    if role in _CT_ROLES:
        check_ct(volume, role, warnings)
    elif role in _MR_ROLES:
        check_mr(volume, role)
    else:
        return facts
    return facts | {"statistics": statistics_of(volume, ct=role in _CT_ROLES)}


def check_on(image: Image, whose: Image, shelf: Shelf) -> None:
    """Checks a mask or a label against the image it is drawn on; warnings go to its facts.

    Raises:
        BadInputError: `frame_mismatch`, and what `read_mask` finds of a probe mask.
    """
    geometry = read_geometry(shelf.fetch(whose.path))
    path, warnings = shelf.fetch(image.path), image.facts["warnings"]
    if image.role == PROBE_MASK:
        read_probe_mask(path, geometry, _body(whose, shelf), report=warnings)
    else:
        voxel_mask(read_volume(path), geometry, warnings, name=image.role)


def _body(ict: Image, shelf: Shelf) -> Volume:
    _, kept = beside(Path(ict.path))
    try:
        return read_volume(shelf.fetch(str(kept)))
    except BadInputError:
        # an iCT that came before bodies were kept
        return coarse_body_mask(read_volume(shelf.fetch(ict.path)))


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInputError("ict_probe_mask: this is not JSON", code="bad_probe_mask") from error
