"""Between a hospital's Orthanc and the service: series in, derived series out, through Orthanc's REST API."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from hepalign.errors import WorkFailedError
from hepalign_serve.client import Client


class Orthanc:
    """The two calls of Orthanc's REST API that a relay needs.

    Args:
        url: Orthanc's address; `HEPALIGN_ORTHANC_USER` and `HEPALIGN_ORTHANC_PASSWORD` hold its basic credentials.
    """

    def __init__(self, url: str) -> None:
        user, password = os.environ.get("HEPALIGN_ORTHANC_USER"), os.environ.get("HEPALIGN_ORTHANC_PASSWORD")
        auth = (user, password) if user and password else None
        self._http = httpx2.Client(base_url=url.rstrip("/"), auth=auth, timeout=120.0)

    def series(self, series: str, target: Path) -> None:
        """Save a series as a zip of its DICOM files."""
        with self._http.stream("GET", f"/series/{series}/archive") as answer:
            if answer.status_code != 200:
                raise _refused("the series cannot be fetched", answer.status_code)
            with target.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)

    def store(self, instance: bytes) -> None:
        """Store one DICOM file."""
        answer = self._http.post("/instances", content=instance, headers={"Content-Type": "application/dicom"})
        if answer.status_code != 200:
            raise _refused("an instance was not stored", answer.status_code)


def send_series(orthanc: Orthanc, client: Client, case: str, series: Mapping[str, str]) -> None:
    """Bring series of Orthanc into a case: `{"pct": "orthanc-series-id"}`.

    Raises:
        WorkFailedError: `orthanc_failed`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for role, identifier in series.items():
            path = Path(folder) / f"{role}.zip"
            orthanc.series(identifier, path)
            client.upload(case, role, path)


def return_artifacts(orthanc: Orthanc, client: Client, case: str, names: Sequence[str]) -> int:
    """Store a case's artifacts in Orthanc as DICOM; returns how many instances went.

    Raises:
        WorkFailedError: `orthanc_failed`.
    """
    sent = 0
    for name in names:
        with zipfile.ZipFile(io.BytesIO(client.dicom(case, name))) as archive:
            for member in archive.namelist():
                orthanc.store(archive.read(member))
                sent += 1
    return sent


def _refused(what: str, status: int) -> WorkFailedError:
    return WorkFailedError(f"{what}: Orthanc answered {status}; check its address and ids", code="orthanc_failed")
