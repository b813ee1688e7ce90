"""Faults around jobs: order, repetition, time, load and lost parts, over HTTP against the running server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from served import Served, in_background, problem, replicas


@pytest.fixture(autouse=True)
def _no_orders_left(served: Served) -> Any:
    yield
    for order in served.control.iterdir():
        order.unlink(missing_ok=True)


def guide(served: Served, case: str, key: str, wait_s: int = 60, **body: object) -> httpx2.Response:
    headers = {"Idempotency-Key": key, "Prefer": f"wait={wait_s}"}
    return served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"} | body, headers=headers)


def finished(served: Served, job: str, within_s: float = 90.0) -> dict[str, Any]:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        state: dict[str, Any] = served.call("GET", f"/v1/jobs/{job}").json()
        if state["state"] in ("succeeded", "failed"):
            return state
        time.sleep(0.2)
    raise AssertionError(f"job {job} is still {state['state']}")


def until_ready(served: Served, within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while served.call("GET", "/readyz", token=None).status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.3)


def test_fault_44_guide_before_the_plan(served: Served) -> None:
    case = served.filled_case()
    answer = guide(served, case, "too-early")
    problem(answer, 409, "plan_not_ready")
    assert int(answer.headers["retry-after"]) > 0
    with served.client() as client:
        empty = client.open_case()
    problem(guide(served, empty, "nothing-there"), 409, "image_missing")


def test_fault_45_plan_replaced_during_guide(served: Served) -> None:
    case = served.planned_case()
    first = served.call("GET", f"/v1/cases/{case}/artifacts/plan.json").json()["plan_digest"]
    with served.held("guide"), served.client() as client:
        running = guide(served, case, "pins-the-plan", wait_s=0).json()["id"]
        client.wait(client.plan(case, engine="ants", wait_s=60)["id"])
    assert finished(served, running)["result"]["plan_digest"] == first


def test_fault_53_idempotency(served: Served) -> None:
    case = served.planned_case()
    path = f"/v1/cases/{case}/guide"
    problem(served.call("POST", path, json={}), 400, "idempotency_key_required")
    with served.held("guide"):
        original = in_background(lambda: guide(served, case, "same"))
        waited(lambda: not (served.control / "guide").exists())
        problem(guide(served, case, "same"), 409, "idempotency_in_flight")
    answered = original()
    assert answered.status_code == 200, answered.text
    replay = guide(served, case, "same")
    assert (replay.status_code, replay.json(), replay.headers["location"]) == (
        200, answered.json(), answered.headers["location"],
    )  # fmt: skip
    problem(guide(served, case, "same", engine="refine"), 422, "idempotency_mismatch")


def test_fault_58_queue_full(served: Served) -> None:
    case = served.planned_case()
    with served.held("guide"):
        answers = [guide(served, case, f"crowd-{i}", wait_s=0) for i in range(8)]
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {202, 429}
    for answer in answers:
        if answer.status_code == 429:
            problem(answer, 429, "too_many_jobs")
    for answer in answers:
        if answer.status_code == 202:
            assert finished(served, answer.json()["id"])["state"] == "succeeded"


def test_fault_58_the_whole_queue_is_full(served: Served) -> None:
    mine = served.planned_case()
    with served.client(served.other_token) as client:
        theirs = client.open_case()
        for role in ("pmr", "pct"):
            client.upload(theirs, role, served.images[role])

    def plan(number: int) -> httpx2.Response:
        headers = {"Idempotency-Key": f"full-{theirs}-{number}"}
        path = f"/v1/cases/{theirs}/plan"
        return served.call("POST", path, json={"engine": "learned"}, headers=headers, token=served.other_token)

    with served.held("guide"):
        served.order("plan", "hold")
        taken = [guide(served, mine, f"full-{mine}-0", wait_s=0), plan(0)]
        waited(lambda: not any((served.control / step).exists() for step in ("guide", "plan")))
        taken += [guide(served, mine, f"full-{mine}-{number}", wait_s=0) for number in range(1, 5)]
        taken += [plan(number) for number in (1, 2)]
        assert {answer.status_code for answer in taken} == {202}
        problem(plan(3), 503, "queue_full")
    for answer in taken[2:6]:
        assert finished(served, answer.json()["id"])["state"] == "succeeded"
    assert served.call("DELETE", f"/v1/cases/{theirs}", token=served.other_token).status_code == 204


def test_fault_59_wait_passed(served: Served) -> None:
    case = served.planned_case()
    with served.held("guide"):
        answer = guide(served, case, "slow", wait_s=1)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert finished(served, answer.json()["id"])["state"] == "succeeded"


def test_fault_59_hard_limit(served: Served) -> None:
    case = served.planned_case()
    served.order("guide", "sleep", seconds=600)
    document = problem(guide(served, case, "endless"), 504, "deadline")
    assert finished(served, document["job"])["problem"]["code"] == "deadline"
    after = guide(served, case, "after-the-endless")
    assert after.status_code == 200, after.text


def test_fault_60_caller_leaves_a_guide(served: Served) -> None:
    case = served.planned_case()
    headers = {"Idempotency-Key": "left", "Prefer": "wait=60", "Authorization": f"Bearer {served.token}"}
    with served.held("guide"):
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{served.url}/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers, timeout=5.0)
        waited(lambda: not (served.control / "guide").exists())
    back = until_answered(lambda: guide(served, case, "left"))
    assert back.status_code == 200, back.text
    assert back.json()["attempt"] == 1


def test_fault_61_replica_killed_in_guide(served: Served) -> None:
    case = served.planned_case()
    served.order("guide", "die")
    answer = guide(served, case, "one-retry")
    assert answer.status_code == 200, answer.text
    assert answer.json()["attempt"] == 2
    served.order("guide", "die", times=2)
    problem(guide(served, case, "no-luck"), 503, "replica_lost")


def test_fault_61_network_replica_killed(served: Served) -> None:
    case = served.planned_case()
    served.order("inpaint", "die")
    answer = guide(served, case, "inpainting-lost")
    assert answer.status_code == 200, answer.text


def test_fault_62_replica_killed_in_plan(served: Served) -> None:
    case = served.filled_case()
    served.order("plan", "die")
    headers = {"Idempotency-Key": f"plan-{case}"}
    answer = served.call("POST", f"/v1/cases/{case}/plan", json={"engine": "learned"}, headers=headers)
    assert answer.status_code == 202
    done = finished(served, answer.json()["id"])
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    jobs = served.data_folder / "cases" / case / "jobs" / done["id"]
    assert [path.name for path in jobs.iterdir()] == ["attempt-2"]


@pytest.mark.parametrize("part", ["Desk", "Ingress"])
def test_fault_63_head_restarted(served: Served, part: str) -> None:
    case = served.planned_case()
    served.order("guide", "sleep", seconds=2)
    job = guide(served, case, f"survives-{part}", wait_s=0).json()["id"]
    (pid,) = replicas(served, part)
    os.kill(pid, signal.SIGKILL)
    waited(lambda: replicas(served, part) not in ([], [pid]))
    until_ready(served)
    assert finished(served, job)["state"] == "succeeded"


def until_answered(call: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Comes back as long as the first request with the key counts as being answered."""
    answer = call()
    while answer.status_code == 409:
        time.sleep(int(answer.headers["retry-after"]))
        answer = call()
    return answer


def waited(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.3)


def test_fault_67_out_of_memory(served: Served) -> None:
    case = served.planned_case()
    served.order("guide", "memory")
    problem(guide(served, case, "too-large-for-us"), 503, "out_of_memory")
    assert guide(served, case, "memory-given-back").status_code == 200


def test_fault_73_disk_full_in_a_job(served: Served) -> None:
    case = served.planned_case()
    before = sorted((served.data_folder / "cases" / case / "jobs").rglob("*.nii.gz"))
    served.order("guide", "full")
    problem(guide(served, case, "no-room"), 507, "storage_full")
    assert sorted((served.data_folder / "cases" / case / "jobs").rglob("*.nii.gz")) == before


def test_fault_74_audit_cannot_be_written(served: Served) -> None:
    blocked = served.settings.anchor.with_suffix(".partial")
    blocked.mkdir()
    try:
        problem(served.call("POST", "/v1/cases", json={}), 503, "audit_unavailable")
    finally:
        blocked.rmdir()
    assert served.call("POST", "/v1/cases", json={}).status_code == 201


def test_fault_68_store_gone(served: Served) -> None:
    case = served.planned_case()
    cases = served.data_folder / "cases"
    cases.rename(cases.with_name("away"))
    try:
        problem(served.call("GET", "/readyz", token=None), 503, "not_ready")
        problem(served.put(case, "ict", served.images["ict"].read_bytes()), 503, "storage_unavailable")
        problem(served.call("POST", "/v1/cases", json={}), 503, "storage_unavailable")
    finally:
        cases.with_name("away").rename(cases)
    until_ready(served)


def test_fault_33_a_bug_says_nothing(served: Served) -> None:
    case = served.planned_case()
    served.order("guide", "bug")
    problem(guide(served, case, "buggy"), 503, "work_failed")
    logs = "".join(path.read_text(encoding="utf-8") for path in (served.data_folder / "logs").iterdir())
    assert "ZeroDivisionError" in logs
    assert "canary-in-a-bug" not in logs


def test_events_tell_a_jobs_life(served: Served) -> None:
    case = served.planned_case()
    served.order("guide", "sleep", seconds=1)
    job = guide(served, case, "watched", wait_s=0).json()["id"]
    told = served.call("GET", f"/v1/jobs/{job}/events")
    assert told.headers["content-type"].startswith("text/event-stream")
    states = [json.loads(line[6:])["state"] for line in told.text.splitlines() if line.startswith("data: ")]
    assert states[-1] == "succeeded"
    assert len(states) >= 2
