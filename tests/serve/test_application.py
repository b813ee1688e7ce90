"""The application in this process, with a desk that writes nothing: bounds, fuzzing, full disks."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import schemathesis
import toy_dicom
from hypothesis import HealthCheck, given, settings
from nifti_bytes import nifti1
from postgres import fresh_database, server
from served import problem, small_ct
from starlette.types import ASGIApp

from hepalign.image.read import read_volume
from hepalign_serve import images, sites
from hepalign_serve.api import create_app
from hepalign_serve.images import Wishes
from hepalign_serve.rates import Rates
from hepalign_serve.run import prepare
from hepalign_serve.settings import Limits, Settings


class SilentDesk:
    """Accepts every line and counts as the desk does; no release is warm."""

    def __init__(self, limits: Limits) -> None:
        self._rates = Rates(limits)

    async def admit(self, site: str) -> bool:
        return self._rates.admit(site)

    async def record(self, **line: str) -> None: ...

    async def wake(self) -> None: ...

    async def next_end(self, seen: int) -> int:
        await asyncio.sleep(0.05)
        return seen

    async def status(self) -> dict[str, Any]:
        return {"release": None}


def application(folder: Path, database: str = "", **limits: int) -> tuple[ASGIApp, str]:
    made = Settings(data_folder=folder, database_url=database, limits=Limits(**limits))
    records = prepare(made)
    token = sites.add_site(records, "clinic")
    records.engine.dispose()
    return create_app(made, SilentDesk(made.limits)), token


def caller(app: ASGIApp, token: str) -> Callable[..., httpx2.Response]:
    def call(method: str, path: str, **words: Any) -> httpx2.Response:
        async def run() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"Authorization": f"Bearer {token}"} | words.pop("headers", {})
                return await client.request(method, path, headers=headers, **words)

        return asyncio.run(run())

    return call


def test_fault_58_rate_limit(tmp_path: Path) -> None:
    call = caller(*application(tmp_path, requests_per_minute=3))
    answers = [call("GET", "/v1/cases") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    problem(answers[-1], 429, "rate_limited")


def test_fault_58_quotas(tmp_path: Path) -> None:
    call = caller(*application(tmp_path, open_cases=1, site_bytes=1))
    case = call("POST", "/v1/cases", json={}).json()["id"]
    problem(call("POST", "/v1/cases", json={}), 429, "too_many_cases")
    sent = b'{"kind": "box", "low_mm": [0, 0, 0], "high_mm": [9, 9, 9]}'
    assert call("PUT", f"/v1/cases/{case}/images/ict-probe-mask", content=sent).status_code == 201
    problem(call("PUT", f"/v1/cases/{case}/images/ict-probe-mask", content=sent), 429, "quota_reached")


def test_fault_58_what_newer_images_replaced_and_chunks_count(tmp_path: Path) -> None:
    boxes = [b'{"kind": "box", "low_mm": [0, 0, 0], "high_mm": [9, 9, %d]}' % high for high in (1, 2, 3)]
    size = len(boxes[0])
    call = caller(*application(tmp_path, site_bytes=3 * size))
    case = call("POST", "/v1/cases", json={}).json()["id"]

    def send(mask: bytes) -> httpx2.Response:
        return call("PUT", f"/v1/cases/{case}/images/ict-probe-mask", content=mask)

    # Going back and forth between two images takes the room of two.
    assert [send(box).status_code for box in (*boxes[:2], *boxes[:2])] == [201] * 4
    assert call("PUT", f"/v1/cases/{case}/uploads/ict/0", content=bytes(size)).status_code == 201
    problem(send(boxes[2]), 429, "quota_reached")
    problem(call("PUT", f"/v1/cases/{case}/uploads/ict/1", content=b"x"), 429, "quota_reached")
    (tmp_path / "cases" / case / "uploads/ict/0.part").unlink()
    assert send(boxes[2]).status_code == 201
    problem(send(boxes[0]), 429, "quota_reached")


def test_fault_66_not_ready_before_a_release_is_warm(tmp_path: Path) -> None:
    call = caller(*application(tmp_path))
    assert call("GET", "/healthz").status_code == 200
    problem(call("GET", "/readyz"), 503, "not_ready")
    problem(call("GET", "/v1/release"), 503, "not_ready")


def test_fault_73_disk_full_in_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = caller(*application(tmp_path))
    case = call("POST", "/v1/cases", json={}).json()["id"]

    def full(self: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    problem(call("PUT", f"/v1/cases/{case}/images/ict-probe-mask", content=b'{"kind": "box"}'), 507, "storage_full")
    assert not [path for path in tmp_path.rglob("*.partial") if path.is_file()]


def test_a_mask_is_checked_on_the_icts_body_whatever_became_of_its_voxels(tmp_path: Path) -> None:
    call = caller(*application(tmp_path))
    case = call("POST", "/v1/cases", json={}).json()["id"]
    ict = small_ct(tmp_path)
    assert call("PUT", f"/v1/cases/{case}/images/ict", content=ict).status_code == 201
    half = b'{"kind": "box", "low_mm": [-70, -70, -40], "high_mm": [0, 70, 60]}'
    probe = b'{"kind": "box", "low_mm": [-6, -6, -6], "high_mm": [6, 6, 6]}'

    def send(mask: bytes) -> httpx2.Response:
        return call("PUT", f"/v1/cases/{case}/images/ict-probe-mask", content=mask)

    (stored,) = (path for path in (tmp_path / "cases" / case / "images").glob("ict-*") if ".body." not in path.name)
    stored.write_bytes(ict[: len(ict) // 2])
    problem(send(half), 422, "probe_mask_too_large")
    assert send(probe).status_code == 201
    # an iCT of a version that kept no body
    stored.write_bytes(ict)
    next(stored.parent.glob("*.body.nii.gz")).unlink()
    problem(send(half), 422, "probe_mask_too_large")
    assert send(probe).status_code == 201


def test_the_same_bytes_read_another_way_leave_the_first_image_alone(tmp_path: Path) -> None:
    call = caller(*application(tmp_path))
    case = call("POST", "/v1/cases", json={}).json()["id"]
    data = np.full((20, 20, 12), -1000, np.int16)
    data[3:-3, 3:-3] = np.random.default_rng(0).normal(50, 15, (14, 14, 12)).astype(np.int16)
    # sform and qform differ: which one counts, the sender says.
    content = nifti1(data, patches={252: ("2h", (1, 1)), 256: ("6f", (0, 0, 0, -10, 20, -35))})

    def stored() -> dict[str, bytes]:
        files = (tmp_path / "cases" / case / "images").iterdir()
        return {path.name: path.read_bytes() for path in files}

    assert call("PUT", f"/v1/cases/{case}/images/ict?orientation=sform", content=content).status_code == 201
    first = stored()
    assert call("PUT", f"/v1/cases/{case}/images/ict?orientation=qform", content=content).status_code == 201
    both = stored()
    assert first.items() <= both.items()
    assert len(both) == 2 * len(first) == 4  # each with its body
    marks = {Wishes("qform").mark, Wishes(drop_localizers=True).mark, Wishes(resample_tilt=True).mark}
    assert len(marks - {Wishes().mark}) == 3


def dicom_zip(folder: Path, patient: str) -> bytes:
    (folder / "ct.nii.gz").write_bytes(small_ct(folder))
    made = toy_dicom.write_dicom(read_volume(folder / "ct.nii.gz"), folder / patient, patient_id=patient)
    return toy_dicom.zipped(made, folder / f"{patient}.zip").read_bytes()


def test_a_refused_image_leaves_nothing_and_takes_nothing_away(tmp_path: Path) -> None:
    call = caller(*application(tmp_path))
    stranger, patient = dicom_zip(tmp_path, "stranger"), dicom_zip(tmp_path, "patient")

    def send(case: str, role: str, content: bytes) -> httpx2.Response:
        headers = {"Content-Type": "application/zip"} if content.startswith(b"PK") else {}
        return call("PUT", f"/v1/cases/{case}/images/{role}", content=content, headers=headers)

    def stored(case: str) -> set[str]:
        return {path.name for path in (tmp_path / "cases" / case / "images").iterdir()}

    case = call("POST", "/v1/cases", json={}).json()["id"]
    assert send(case, "pct", patient).status_code == 201
    before = stored(case)
    problem(send(case, "ict", stranger), 422, "patient_mismatch")
    assert stored(case) == before
    # One that was accepted before may be a job's, though it is not the newest and would be refused now.
    other = call("POST", "/v1/cases", json={}).json()["id"]
    assert send(other, "ict", stranger).status_code == 201
    assert send(other, "ict", small_ct(tmp_path)).status_code == 201
    assert send(other, "pct", patient).status_code == 201
    before = stored(other)
    problem(send(other, "ict", stranger), 422, "patient_mismatch")
    assert stored(other) == before


def test_a_sender_that_hangs_up_leaves_a_whole_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, token = application(tmp_path)
    read, go_on = threading.Event(), threading.Event()
    accept = images.accept

    def slow(*words: Any) -> Any:
        accepted = accept(*words)
        read.set()
        assert go_on.wait(30)
        return accepted

    monkeypatch.setattr(images, "accept", slow)

    async def run() -> None:
        transport, headers = httpx2.ASGITransport(app=app), {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            case = (await client.post("/v1/cases", json={})).json()["id"]
            sending = asyncio.create_task(client.put(f"/v1/cases/{case}/images/ict", content=small_ct(tmp_path)))
            assert await asyncio.to_thread(read.wait, 30)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            go_on.set()
            async with asyncio.timeout(30):
                while not (await client.get(f"/v1/cases/{case}")).json()["images"]:
                    await asyncio.sleep(0.02)
            assert (await client.get(f"/v1/cases/{case}/images/ict")).status_code == 200

    asyncio.run(run())


def test_a_nul_names_nothing_on_postgresql(postgres: str, tmp_path: Path) -> None:
    call = caller(*application(tmp_path, fresh_database(postgres, "nul")))
    case = call("POST", "/v1/cases", json={}).json()["id"]
    for path in (
        f"/v1/cases/{case}/artifacts/result.json?job=%00", f"/v1/cases/{case}/artifacts/%00", "/v1/cases/%00",
        f"/v1/cases/{case}/images/ict?job=a%00", "/v1/jobs/%00",
    ):  # fmt: skip
        problem(call("GET", path), 404, "not_found")
    for role in ("ict", "ict-probe-mask"):
        sent = small_ct(tmp_path) if role == "ict" else b'{"kind": "box", "low_mm": [-6, -6, -6], "high_mm": [6, 6, 6]}'
        assert call("PUT", f"/v1/cases/{case}/images/{role}", content=sent).status_code == 201
    words = {"json": {"plan": "\0"}, "headers": {"Idempotency-Key": "nul"}}
    problem(call("POST", f"/v1/cases/{case}/guide", **words), 404, "not_found")


def test_a_database_that_restarts_is_asked_again(tmp_path: Path) -> None:
    with server() as address:
        call = caller(*application(tmp_path, fresh_database(address, "restarts")))
        assert call("GET", "/v1/cases").status_code == 200
    told = call("GET", "/v1/cases")
    problem(told, 503, "database_unavailable")
    assert int(told.headers["retry-after"]) > 0


def test_answers_forbid_framing_sniffing_and_keeping(tmp_path: Path) -> None:
    call = caller(*application(tmp_path))
    for path, status in (("/", 200), ("/v1/cases", 200), ("/nothing", 404)):
        answer = call("GET", path)
        assert answer.status_code == status
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_fuzzed_calls_get_documents(tmp_path: Path) -> None:
    app, token = application(tmp_path, requests_per_minute=10**6, open_cases=10**6)
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:

        @settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def fuzz(case: schemathesis.Case) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=60)
            assert answer.status_code != 500
            if answer.status_code >= 400:
                assert answer.headers["content-type"][0] == "application/problem+json"
                assert answer.json()["status"] == answer.status_code

        fuzz()
