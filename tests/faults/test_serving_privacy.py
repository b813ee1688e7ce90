"""FAULTS 33: patient data never reaches logs, metrics, errors or the audit; and what metrics do say."""

from __future__ import annotations

import gzip
import time
from urllib.parse import quote

import pytest
from served import Served, problem, scraped, small_ct

CANARY = "Canary^Nightingale^19470211"


@pytest.fixture(scope="module")
def after_canaries(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Everything that a caller can say, said with a patient's name in it."""
    folder = tmp_path_factory.mktemp("canary")
    said = quote(CANARY)
    named = gzip.compress(b"\x5c\x01\0\0" + CANARY.encode() * 40)
    headers = {"X-Request-ID": said, "User-Agent": said, "Referer": said, "Cookie": f"name={said}"}
    with served.client() as client:
        case = client.open_case()
    calls = [
        ("GET", f"/v1/cases/{said}", {}),
        ("GET", f"/v1/jobs/{said}", {}),
        ("GET", f"/{said}", {}),
        ("GET", f"/v1/cases?name={said}", {}),
        ("GET", f"/v1/cases/{case}/artifacts/{said}", {}),
        ("PUT", f"/v1/cases/{case}/images/{said}", {"content": b"x"}),
        ("PUT", f"/v1/cases/{case}/images/ict", {"content": named}),
        ("PUT", f"/v1/cases/{case}/images/ict", {"content": small_ct(folder)}),
        ("POST", "/v1/cases", {"json": {CANARY: CANARY}}),
        ("POST", "/v1/cases", {"content": CANARY.encode()}),
        ("POST", f"/v1/cases/{case}/guide", {"json": {"engine": CANARY}}),
        ("POST", f"/v1/cases/{case}/guide", {"json": {"plan": CANARY}}),
    ]
    for method, path, words in calls:
        more = {"Idempotency-Key": said} if path.endswith("guide") else {}
        answer = served.call(method, path, headers=headers | more, **words)
        if answer.status_code >= 400:
            assert CANARY not in answer.text
            assert said not in answer.text
            problem(answer, answer.status_code, answer.json()["code"])
    time.sleep(2.5)
    return served


def test_fault_33_no_canary_in_logs(after_canaries: Served) -> None:
    files = list((after_canaries.data_folder / "logs").iterdir())
    assert {path.stem for path in files} >= {"ingress", "desk", "planning", "registration", "synthesis", "inpainting"}
    written = "".join(path.read_text(encoding="utf-8") for path in files)
    assert '"route": "/v1/cases/{case_id}"' in written
    for word in (CANARY, quote(CANARY), "Nightingale"):
        assert word not in written


def test_fault_33_no_canary_in_the_metrics(after_canaries: Served) -> None:
    text = scraped(after_canaries)
    assert 'hepalign_requests_total{method="GET",route="/v1/cases/{case_id}",status="404"}' in text
    assert "Nightingale" not in text


def test_fault_33_no_canary_in_the_traces(after_canaries: Served) -> None:
    told = str(list(after_canaries.spans.kept))
    assert "GET /v1/cases/{case_id}" in told
    assert "Nightingale" not in told


def test_fault_33_no_canary_in_the_books(after_canaries: Served) -> None:
    with after_canaries.records.engine.connect() as connection:
        for table in ("audit", "jobs", "images", "cases", "idempotency"):
            rows = connection.exec_driver_sql(f"select * from {table}").fetchall()
            assert "Nightingale" not in str(rows)


def test_metrics_tell_of_jobs_and_the_release(after_canaries: Served) -> None:
    # a new plan: counters begin anew when the desk was restarted
    after_canaries.newly_planned_case()
    time.sleep(1.5)
    text = scraped(after_canaries)
    assert 'hepalign_jobs_total{kind="plan",outcome="succeeded"}' in text
    assert 'hepalign_step_seconds_bucket{kind="plan"' in text
    assert "hepalign_release{" in text
    assert after_canaries.call("GET", "/metrics").status_code == 404
