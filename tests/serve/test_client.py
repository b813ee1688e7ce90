"""The client over HTTP: chunks that survive, downloads that go on, exit codes, one JSON object."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pydicom
import pytest
import toy_dicom
from shown_site import Shown, result_of

from hepalign.cli.app import run
from hepalign.errors import WorkFailedError
from hepalign.image.nifti import write_nifti
from hepalign_serve import client as client_module
from hepalign_serve.client import Client, ServiceError
from hepalign_serve.records import Image


@pytest.fixture
def client(shown: Shown) -> Iterator[Client]:
    with Client(shown.url, shown.token, attempts=3) as made:
        yield made


def pct(shown: Shown, folder: Path) -> Path:
    write_nifti(shown.phantom.volumes["pct"], folder / "pct.nii.gz")
    return folder / "pct.nii.gz"


def answered(client: Client, *answers: Any) -> list[httpx2.Request]:
    """Lets the client hear these answers, one a call; what it asked."""
    asked, left = [], list(answers)

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    client._http = httpx2.Client(base_url="http://service", transport=httpx2.MockTransport(handle))
    return asked


def test_large_upload_goes_on_where_it_broke(
    shown: Shown, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PART_BYTES", 1 << 14)
    path, case = pct(shown, tmp_path), client.open_case()
    count = -(-path.stat().st_size // (1 << 14))
    sent: list[int] = []
    real = Client._send

    def breaking(self: Client, method: str, at: str, *words: Any) -> dict[str, Any]:
        sent.append(int(at.rpartition("/")[2]))
        if len(sent) == 3:
            raise ConnectionAbortedError
        return real(self, method, at, *words)

    monkeypatch.setattr(Client, "_send", breaking)
    with pytest.raises(ConnectionAbortedError):
        client.upload(case, "pct", path)
    told: list[tuple[int, int]] = []
    view = client.upload(case, "pct", path, progress=lambda done, total: told.append((done, total)))
    assert sent == [0, 1, 2, *range(2, count)]
    assert told[-1] == (path.stat().st_size,) * 2
    assert view["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_chunks_of_another_image_are_sent_again(
    shown: Shown, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PART_BYTES", 1 << 14)
    case, path = client.open_case(), pct(shown, tmp_path)
    shown_other = client._http.put(f"/v1/cases/{case}/uploads/pct/0", content=bytes(1 << 14))
    assert shown_other.status_code == 201
    assert client.upload(case, "pct", path)["shape"] is not None


def test_dicom_folder_travels_without_its_names(shown: Shown, client: Client, tmp_path: Path) -> None:
    folder = toy_dicom.write_dicom(shown.phantom.volumes["pct"], tmp_path / toy_dicom.PATIENT_NAME)
    case = client.open_case()
    assert client.upload(case, "pct", folder)["dicom"]


def test_download_goes_on_where_it_broke(client: Client, tmp_path: Path) -> None:
    content = bytes(range(200))
    digest = hashlib.sha256(content).hexdigest()

    def breaking() -> Iterator[bytes]:
        yield content[:80]
        raise httpx2.ReadError("gone")

    headers = {"ETag": f'"{digest}"'}
    asked = answered(
        client,
        httpx2.Response(200, headers=headers, content=breaking()),
        httpx2.Response(503),
        httpx2.Response(206, headers=headers, content=content[80:]),
    )
    saved = client.artifact("case", "x.nii.gz", tmp_path)
    assert saved.read_bytes() == content
    assert len(asked) == 3
    assert asked[2].headers["Range"] == "bytes=80-"
    assert asked[2].headers["If-Range"] == f'"{digest}"'


def test_damaged_download_is_not_kept(client: Client, tmp_path: Path) -> None:
    answered(client, httpx2.Response(200, headers={"ETag": f'"{"0" * 64}"'}, content=b"not that"))
    with pytest.raises(WorkFailedError, match="damaged"):
        client.artifact("case", "x.nii.gz", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_busy_service_is_asked_again(client: Client) -> None:
    busy = httpx2.Response(503, headers={"Retry-After": "0"})
    asked = answered(client, httpx2.ConnectError("down"), busy, httpx2.Response(200, json={"cases": []}))
    assert client.cases() == []
    assert len(asked) == 3


def test_what_the_newest_guide_withheld_is_no_result(shown: Shown, client: Client, tmp_path: Path) -> None:
    shown = shown.another_case()
    accepted = shown.add_job("guide", "succeeded", result=result_of("accept"))
    shown.keep(accepted, {"labels_on_ict.nii.gz": shown.labels(), "inpct.nii.gz": shown.phantom.volumes["ict_clean"]})
    rejected = shown.add_job("guide", "succeeded", result=result_of("reject"))
    shown.keep(rejected, {"inpct.nii.gz": shown.phantom.volumes["ict"]})
    # One that failed takes nothing away.
    shown.add_job("guide", "failed", problem={"code": "no_overlap"})
    assert client.case(shown.case)["artifacts"] == ["inpct.nii.gz", "pmr.nii.gz"]
    with pytest.raises(ServiceError) as error:
        client.artifact(shown.case, "labels_on_ict.nii.gz", tmp_path)
    assert (error.value.code, error.value.status) == ("not_found", 404)
    newest = client.newest(shown.case, "guide")
    assert newest is not None
    assert newest["id"] == rejected
    saved = client.download(shown.case, tmp_path / "all")
    assert [path.name for path in saved] == ["pmr.nii.gz", "inpct.nii.gz"]
    kept = shown.folder / f"cases/{shown.case}/jobs/{rejected}/inpct.nii.gz"
    assert (tmp_path / "all/inpct.nii.gz").read_bytes() == kept.read_bytes()
    assert client.artifact(shown.case, "labels_on_ict.nii.gz", tmp_path, job=accepted).is_file()


def test_results_go_back_as_dicom_after_another_ict_came(shown: Shown, client: Client, tmp_path: Path) -> None:
    shown = shown.another_case()
    folder = toy_dicom.write_dicom(shown.phantom.volumes["ict"], tmp_path / "ict")
    client.upload(shown.case, "ict", folder)
    with shown.records.read() as session:
        used = session.get_one(Image, (shown.case, "ict")).path
    job = shown.add_job("guide", "succeeded", result=result_of("accept"), request={"images": {"ict": used}})
    shown.keep(job, {"inpct.nii.gz": shown.phantom.volumes["ict_clean"]})
    write_nifti(shown.phantom.volumes["ict"], tmp_path / "later.nii.gz")
    client.upload(shown.case, "ict", tmp_path / "later.nii.gz")
    with zipfile.ZipFile(io.BytesIO(client.dicom(shown.case, "inpct.nii.gz", job=job))) as archive:
        first = pydicom.dcmread(io.BytesIO(archive.read(archive.namelist()[0])))
    assert first.PatientID == toy_dicom.PATIENT_ID
    assert client.dicom(shown.case, "inpct.nii.gz")


def test_a_refusal_is_the_problem_document(client: Client) -> None:
    with pytest.raises(ServiceError) as error:
        client.case("unknown")
    assert (error.value.code, error.value.status) == ("not_found", 404)


def command(shown: Shown, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the one JSON object on stdout."""
    with pytest.raises(SystemExit) as ended:
        run(["client", *words, "--url", shown.url, "--token", shown.token, "--json"])
    content: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
    return int(ended.value.code or 0), content


def test_commands_print_one_object(shown: Shown, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = pct(shown, tmp_path)
    status, sent = command(shown, capfd, "upload", f"pct={path}")
    assert (status, sent["images"][0]["role"]) == (0, "pct")
    status, found = command(shown, capfd, "cases", shown.case)
    assert {job["kind"] for job in found["jobs"]} == {"plan", "guide"}
    words = ("artifacts", shown.case, "--out", str(tmp_path / "out"), "--name", "pmr_on_ict.nii.gz")
    assert command(shown, capfd, *words)[1] == {"files": ["pmr_on_ict.nii.gz"]}
    assert command(shown, capfd, *words, "--dicom")[1]["error"]["code"] == "no_dicom_context"
    assert command(shown, capfd, "erase", sent["case"])[0] == 0


def test_exit_status_tells_bad_data_from_bad_words(
    shown: Shown, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.nii").write_bytes(b"")
    assert command(shown, capfd, "upload", f"pct={tmp_path / 'empty.nii'}")[0] == 3
    assert command(shown, capfd, "upload", "pct")[0] == 2
    assert command(shown, capfd, "jobs", "unknown")[0] == 1
