"""The running server: lanes, queue, retention, the shadow, traces, and what it listens on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from served import OTHER_SITE, Served, problem, scraped

from hepalign.inference.untrained import make_untrained_bundle
from hepalign_serve import audit
from hepalign_serve.records import CaseRow, Job


@pytest.fixture(autouse=True)
def _no_orders_left(served: Served) -> Iterator[None]:
    yield
    for order in served.control.iterdir():
        order.unlink()


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def guide(served: Served, case: str, key: str, wait_s: int = 60) -> httpx2.Response:
    headers = {"Idempotency-Key": f"{key}-{case}", "Prefer": f"wait={wait_s}"}
    return served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers)


def job(served: Served, answer: httpx2.Response) -> dict[str, Any]:
    state: dict[str, Any] = served.call("GET", f"/v1/jobs/{answer.json()['id']}").json()
    return state


def events(served: Served, name: str) -> list[dict[str, Any]]:
    """Lines of the desk's log of one event."""
    written = (served.data_folder / "logs" / "desk.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, written.splitlines()) if line["event"] == name]


def test_a_guide_never_waits_behind_plans(served: Served) -> None:
    ready, slow = served.planned_case(), served.filled_case()
    with served.held("plan"):
        headers = {"Idempotency-Key": f"long-{slow}"}
        plan = served.call("POST", f"/v1/cases/{slow}/plan", json={"engine": "learned"}, headers=headers)
        until(lambda: job(served, plan)["state"] == "running")
        assert guide(served, ready, "in-between").status_code == 200
        assert job(served, plan)["state"] == "running"
    until(lambda: job(served, plan)["state"] == "succeeded")


def test_an_answer_comes_when_its_job_ends(served: Served) -> None:
    case, late_s = served.planned_case(), []
    for number in range(5):
        answer = guide(served, case, f"told-{number}")
        came = time.time()
        with served.records.read() as session:
            late_s.append(came - (session.get_one(Job, answer.json()["id"]).finished or 0.0))
    # whoever only looked again after a second would be half a second late
    assert sum(late_s) / len(late_s) < 0.3, late_s


def test_place_in_the_queue_and_time_left(served: Served) -> None:
    case = served.planned_case()
    assert guide(served, case, "so-that-a-time-is-known").status_code == 200
    with served.held("guide"):
        answers = [guide(served, case, f"queue-{number}", wait_s=0) for number in range(3)]
        until(lambda: job(served, answers[0])["state"] == "running")
        seen = [job(served, answer) for answer in answers]
    assert [state["queue_position"] for state in seen] == [0, 1, 2]
    assert seen[0]["eta_s"] < seen[1]["eta_s"] < seen[2]["eta_s"]
    told = served.call("GET", f"/v1/jobs/{seen[2]['id']}/events").text
    states = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    assert (states[-1]["state"], states[-1]["queue_position"], states[-1]["eta_s"]) == ("succeeded", 0, 0.0)


def test_retention_erases_what_nobody_touched(served: Served) -> None:
    with served.client() as client:
        case = client.open_case()
    with served.records.write() as session:
        session.get_one(CaseRow, case).touched = time.time() - 31 * 86400
    until(lambda: served.call("GET", f"/v1/cases/{case}").status_code == 404)
    assert not (served.data_folder / "cases" / case).exists()
    lines = [json.loads(line) for line in audit.export(served.records)]
    assert "expire" in [line["action"] for line in lines if line["target"] == case]


def test_a_case_erased_while_it_is_worked_on_leaves_nothing(served: Served) -> None:
    case = served.newly_planned_case()
    with served.held("guide"):
        running = guide(served, case, "erased", wait_s=0)
        until(lambda: job(served, running)["state"] == "running")
        assert served.call("DELETE", f"/v1/cases/{case}").status_code == 204
        problem(served.call("GET", f"/v1/jobs/{running.json()['id']}"), 404, "not_found")
    # the replica goes on and writes its results; they are swept
    other = served.planned_case()
    assert guide(served, other, "after-the-erased").status_code == 200
    until(lambda: not (served.data_folder / "cases" / case).exists())


def test_a_token_of_the_identity_provider_opens_its_sites_cases(served: Served) -> None:
    with served.client(served.other_token) as client:
        case = client.open_case()
    answer = served.call("GET", "/v1/cases", token=served.issuer.token(OTHER_SITE))
    assert case in [line["id"] for line in answer.json()["cases"]]
    assert served.call("GET", f"/v1/cases/{case}", token=served.issuer.token("local")).status_code == 404
    served.call("DELETE", f"/v1/cases/{case}", token=served.other_token)


@pytest.fixture
def candidate(served: Served, tmp_path: Path) -> Iterator[str]:
    """A release in the shadow; its version."""
    made = make_untrained_bundle(tmp_path / "made", seed=5)
    folder = Path(served.settings.candidate)
    shutil.copytree(made, folder)
    version = json.loads((folder / "release.json").read_text(encoding="utf-8"))["version"]
    until(lambda: [line for line in events(served, "shadowing") if line["version"] == version])
    yield version
    before = len(events(served, "candidate_refused"))
    shutil.rmtree(folder)
    until(lambda: len(events(served, "candidate_refused")) > before)


def test_a_candidate_runs_in_the_shadow(served: Served, candidate: str) -> None:
    case = served.newly_planned_case()
    plan = served.call("GET", f"/v1/cases/{case}").json()["jobs"][0]["id"]

    def shadow_of(job: str) -> list[dict[str, Any]]:
        return [line for line in events(served, "shadow") if line["job"] == job]

    # it does one job at a time: what comes in between is dropped
    until(lambda: shadow_of(plan), within_s=150)
    answer = guide(served, case, "shadowed")
    told = until(lambda: shadow_of(answer.json()["id"]), within_s=150)[0]
    assert told["outcome"] in ("agrees", "differs")
    assert (told["candidate"], told["served"]) == (candidate, answer.json()["result"]["release"]["version"])
    assert told["difference_mm"] > 0
    # nothing of it is returned or kept
    jobs = served.call("GET", f"/v1/cases/{case}").json()["jobs"]
    assert {done["result"]["release"]["version"] for done in jobs} == {told["served"]}
    assert candidate != served.call("GET", "/v1/release").json()["version"]
    assert not list((served.data_folder / "shadow").iterdir())
    # while others wait it is dropped
    for number in range(3):
        assert guide(served, case, f"busy-{number}", wait_s=0).status_code == 202
    until(lambda: 'outcome="dropped"' in scraped(served))
    text = scraped(served)
    assert 'hepalign_shadow_total{kind="guide",outcome=' in text
    assert "hepalign_shadow_difference_mm_count" in text


def test_one_trace_leads_from_the_request_to_every_step(served: Served) -> None:
    case = served.planned_case()
    parent = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"Idempotency-Key": f"traced-{case}", "Prefer": "wait=60", "traceparent": f"00-{parent}-{'1' * 16}-01"}
    assert served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers).status_code == 200
    wanted = {"POST /v1/cases/{case_id}/guide", "job guide", "compute guide", "network inpaint", "step register"}

    def spans() -> dict[str, Any]:
        return {span.name: span for span in list(served.spans.kept) if span.trace_id.hex() == parent}

    found = until(lambda: spans() if wanted <= spans().keys() else None)
    by_id = {span.span_id: span.name for span in found.values()}
    chain = [found["network inpaint"]]
    while chain[-1].parent_span_id in by_id:
        chain.append(found[by_id[chain[-1].parent_span_id]])
    assert [span.name for span in chain] == [
        "network inpaint", "compute guide", "job guide", "POST /v1/cases/{case_id}/guide",
    ]  # fmt: skip
    assert case not in str(served.spans.kept)


def test_http_and_metrics_listen_where_they_are_told_only(served: Served) -> None:
    """Ray's own ports are the private network's and ask for its token."""
    ports = {served.settings.port, served.settings.metrics_port}
    tree = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
    listening = {
        (connection.laddr.port, connection.laddr.ip)
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports
    }
    # Ray may take the same number on the machine's own address
    assert listening >= {(port, "127.0.0.1") for port in ports}
    assert not {ip for _, ip in listening} & {"0.0.0.0", "::"}
