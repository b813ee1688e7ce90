"""A DICOM source's patient and study, encrypted beside the case's images and erased with them."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite

from hepalign.image.dicom import DicomSeries
from hepalign_serve.dicom_source import kept
from hepalign_serve.problems import RequestError


class Vault:
    """Encrypts with the service's key: a file that only the service's user may read.

    Args:
        key_file: made on first use.
    """

    def __init__(self, key_file: Path) -> None:
        self._key = _key(key_file)
        self._cipher = Fernet(self._key)

    def keep(self, path: Path, series: DicomSeries) -> dict[str, Any]:
        """Writes whose series it is, encrypted; returns keyed hashes that show sameness and nothing else."""
        plain = io.BytesIO()
        dcmwrite(plain, kept(series), implicit_vr=False, little_endian=True)
        path.write_bytes(self._cipher.encrypt(plain.getvalue()))
        identity = series.identity
        return {
            "dicom": path.name,
            "patient": self._mark(identity.patient),
            "frame_of_reference": self._mark(identity.frame_of_reference),
        }

    def open(self, path: Path) -> Dataset:
        """What `dicom_source.kept` found and `keep` wrote."""
        plain = io.BytesIO(self._cipher.decrypt(path.read_bytes()))
        return dcmread(plain, force=True)

    def _mark(self, value: str) -> str:
        return hmac.new(self._key, value.encode(), hashlib.sha256).hexdigest() if value else ""


def check_same_patient(facts: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """Refuses an image of another patient than the case's other images (DICOM only; empty ids say nothing).

    Raises:
        RequestError: 422 `patient_mismatch`.
    """
    mine = facts.get("patient")
    if mine and any(other.get("patient") not in (None, "", mine) for other in others):
        message = "this image's patient is not the patient of the case's other images"
        raise RequestError(message, code="patient_mismatch", status=422)


def _key(key_file: Path) -> bytes:
    try:
        handle = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return key_file.read_bytes()
    with os.fdopen(handle, "wb") as file:
        file.write(Fernet.generate_key())
    return key_file.read_bytes()
