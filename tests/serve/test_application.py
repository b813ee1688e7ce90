"""The application in this process, with a desk that writes nothing: bounds, fuzzing, full disks."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from served import problem, small_ct
from starlette.types import ASGIApp

from hepalign_serve import sites
from hepalign_serve.api import create_app
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


def application(folder: Path, **limits: int) -> tuple[ASGIApp, str]:
    made = Settings(data_folder=folder, limits=Limits(**limits))
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
            answer = case.call(headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code != 500
            if answer.status_code >= 400:
                assert answer.headers["content-type"][0] == "application/problem+json"
                assert answer.json()["status"] == answer.status_code

        fuzz()
