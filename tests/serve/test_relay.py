"""The relay against an HTTP server that answers as Orthanc's REST API does."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hepalign.errors import WorkFailedError
from hepalign_serve.relay import Orthanc, return_artifacts, send_series


def zipped(*contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.dcm", content)
    return buffer.getvalue()


class FakeOrthanc(BaseHTTPRequestHandler):
    stored: list[bytes] = []  # noqa: RUF012

    def do_GET(self) -> None:
        known = self.path == "/series/abc/archive"
        self.send_response(200 if known else 404)
        self.end_headers()
        if known:
            self.wfile.write(zipped(b"slice one", b"slice two"))

    def do_POST(self) -> None:
        FakeOrthanc.stored.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if self.path == "/instances" else 404)
        self.end_headers()
        self.wfile.write(b'{"ParentStudy": "study-1"}')

    def log_message(self, format: str, *args: object) -> None: ...


class FakeClient:
    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}
        self.newest_guides = iter([{"id": "guide-1"}, {"id": "guide-2"}])

    def upload(self, case: str, role: str, path: Path) -> None:
        self.uploads[f"{case}/{role}"] = path.read_bytes()

    def newest(self, case: str, kind: str) -> dict[str, str]:
        assert kind == "guide"
        return next(self.newest_guides)

    def dicom(self, case: str, name: str, *, job: str | None = None) -> bytes:
        return zipped(f"{case} {name} {job}".encode(), b"second")


@pytest.fixture
def orthanc() -> Iterator[Orthanc]:
    FakeOrthanc.stored.clear()
    server = HTTPServer(("127.0.0.1", 0), FakeOrthanc)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Orthanc(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()


def test_a_series_goes_into_the_case_as_it_is(orthanc: Orthanc) -> None:
    client = FakeClient()
    send_series(orthanc, client, "case-1", {"pct": "abc"})  # type: ignore[arg-type]
    assert client.uploads == {"case-1/pct": zipped(b"slice one", b"slice two")}


def test_results_are_stored_instance_by_instance(orthanc: Orthanc) -> None:
    sent = return_artifacts(orthanc, FakeClient(), "case-1", ["pmr_on_ict.nii.gz"])  # type: ignore[arg-type]
    assert sent == {"study-1": 2}
    assert FakeOrthanc.stored == [b"case-1 pmr_on_ict.nii.gz guide-1", b"second"]


def test_all_results_are_of_one_guide(orthanc: Orthanc) -> None:
    names = ["pmr_on_ict.nii.gz", "labels_on_ict.nii.gz"]
    assert return_artifacts(orthanc, FakeClient(), "case-1", names) == {"study-1": 4}  # type: ignore[arg-type]
    assert [stored.split()[-1] for stored in FakeOrthanc.stored[::2]] == [b"guide-1", b"guide-1"]


def test_an_unknown_series_is_an_error_that_says_so(orthanc: Orthanc) -> None:
    with pytest.raises(WorkFailedError, match="404") as caught:
        send_series(orthanc, FakeClient(), "case-1", {"pct": "nope"})  # type: ignore[arg-type]
    assert caught.value.code == "orthanc_failed"
