"""Between a hospital's Orthanc and the service: series in, derived series out, through Orthanc's REST API."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import stamina

from hepalign.errors import WorkFailedError
from hepalign_serve.client import Client

ATTEMPTS = 4


class Orthanc:
    """The calls of Orthanc's REST API that a relay needs; a lost connection is tried again.

    Args:
        url: Orthanc's address; `HEPALIGN_ORTHANC_USER` and `HEPALIGN_ORTHANC_PASSWORD` hold its basic credentials.
    """

    def __init__(self, url: str) -> None:
        user, password = os.environ.get("HEPALIGN_ORTHANC_USER"), os.environ.get("HEPALIGN_ORTHANC_PASSWORD")
        auth = (user, password) if user and password else None
        self._http = httpx2.Client(base_url=url.rstrip("/"), auth=auth, timeout=120.0)

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def list_series(self) -> list[dict[str, Any]]:
        """What is there to choose from: Orthanc's id, modality, description, date and count; nothing of the patient."""
        answer = self._call("GET", "/series", params={"expand": ""}, what="the series cannot be listed")
        return [_line(series) for series in answer.json()]

    def series(self, series: str, target: Path) -> None:
        """Save a series as a zip of its DICOM files."""
        for attempt in stamina.retry_context(on=httpx2.TransportError, attempts=ATTEMPTS):
            with attempt, self._http.stream("GET", f"/series/{series}/archive") as answer:
                if answer.status_code != 200:
                    raise _refused("the series cannot be fetched", answer.status_code)
                with target.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)

    def store(self, instance: bytes) -> str:
        """Store one DICOM file; Orthanc's id of the study that it went into. One that is there already stays."""
        headers = {"Content-Type": "application/dicom"}
        answer = self._call("POST", "/instances", content=instance, headers=headers, what="an instance was not stored")
        return str(answer.json().get("ParentStudy", ""))

    def _call(self, method: str, path: str, *, what: str, **words: Any) -> httpx2.Response:
        for attempt in stamina.retry_context(on=httpx2.TransportError, attempts=ATTEMPTS):
            with attempt:
                answer: httpx2.Response = self._http.request(method, path, **words)
        if answer.status_code != 200:
            raise _refused(what, answer.status_code)
        return answer


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


def return_artifacts(orthanc: Orthanc, client: Client, case: str, names: Sequence[str]) -> dict[str, int]:
    """Store artifacts of a case's newest guide in Orthanc as DICOM; how many instances went into which study.

    Studies are named by Orthanc's ids. All artifacts are of one guide, also when another one ends meanwhile.

    Raises:
        WorkFailedError: `orthanc_failed`.
        ServiceError: `not_found` when the guide left no such artifact.
    """
    sent: dict[str, int] = {}
    guide = client.newest(case, "guide") if names else None
    for name in names:
        with zipfile.ZipFile(io.BytesIO(client.dicom(case, name, job=guide["id"] if guide else None))) as archive:
            for member in archive.namelist():
                study = orthanc.store(archive.read(member))
                sent[study] = sent.get(study, 0) + 1
    return sent


def _line(series: Mapping[str, Any]) -> dict[str, Any]:
    tags = series.get("MainDicomTags", {})
    return {
        "series": series["ID"],
        "study": series.get("ParentStudy", ""),
        "modality": tags.get("Modality", ""),
        "description": tags.get("SeriesDescription", ""),
        "date": tags.get("SeriesDate", ""),
        "instances": len(series.get("Instances", [])),
    }


def _refused(what: str, status: int) -> WorkFailedError:
    return WorkFailedError(f"{what}: Orthanc answered {status}; check its address and ids", code="orthanc_failed")
