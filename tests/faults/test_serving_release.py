"""What is served: swapped under load, refused when wrong, kept when its source is gone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from served import Served, in_background, problem

from hepalign.inference.untrained import make_untrained_bundle


@pytest.fixture
def release(served: Served) -> object:
    """The served release's folder, put back afterwards."""
    kept = served.release.with_name("kept")
    shutil.copytree(served.release, kept)
    before = version(served)
    yield served.release
    shutil.rmtree(served.release, ignore_errors=True)
    kept.rename(served.release)
    until(lambda: version(served) == before)


def version(served: Served) -> str:
    return str(served.call("GET", "/v1/release").json()["version"])


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


def put_in_place(made: Path, release: Path) -> None:
    """The manifest comes last: it is what the service looks at."""
    for path in sorted(made.iterdir(), key=lambda path: path.name == "release.json"):
        shutil.copyfile(path, release / path.name)


def test_fault_65_swap_under_load(served: Served, release: Path, tmp_path: Path) -> None:
    case = served.planned_case()
    made = make_untrained_bundle(tmp_path / "next", seed=1)
    ended = time.monotonic() + 20

    def load(name: str) -> list[httpx2.Response]:
        answers = []
        while time.monotonic() < ended:
            headers = {"Idempotency-Key": f"swap-{name}-{len(answers)}", "Prefer": "wait=60"}
            path = f"/v1/cases/{case}/guide"
            answers.append(served.call("POST", path, json={"engine": "fast"}, headers=headers))
        return answers

    callers = [in_background(lambda name=name: load(name)) for name in "ab"]
    time.sleep(4)
    put_in_place(made, release)
    answers = [answer for caller in callers for answer in caller()]
    assert {answer.status_code for answer in answers} == {200}
    weights = {
        name: entry["sha256"]
        for name, entry in json.loads((made / "release.json").read_text(encoding="utf-8"))["networks"].items()
    }
    seen: dict[str, set[str]] = {}
    for answer in answers:
        result = answer.json()["result"]
        digests = json.dumps(result["weight_digests"], sort_keys=True)
        seen.setdefault(result["release"]["version"], set()).add(digests)
    assert {name: len(digests) for name, digests in seen.items()} == {"0": 1, "1": 1}
    assert json.loads(next(iter(seen["1"]))) == weights


def test_fault_65_a_release_and_its_rollback_reach_guides_while_a_plan_runs(
    served: Served, release: Path, tmp_path: Path
) -> None:
    slow = served.filled_case()
    before = version(served)
    made = make_untrained_bundle(tmp_path / "next", seed=1)
    with served.held("plan"):
        headers = {"Idempotency-Key": f"held-{slow}"}
        plan = served.call("POST", f"/v1/cases/{slow}/plan", json={"engine": "learned"}, headers=headers).json()["id"]
        until(lambda: served.call("GET", f"/v1/jobs/{plan}").json()["state"] == "running")
        put_in_place(made, release)
        until(lambda: version(served) == "1")
        put_in_place(release.with_name("kept"), release)
        until(lambda: version(served) == before)
        assert served.call("GET", f"/v1/jobs/{plan}").json()["state"] == "running"
    until(lambda: served.call("GET", f"/v1/jobs/{plan}").json()["state"] == "succeeded")


def test_fault_70_wrong_weights_are_refused(served: Served, release: Path, tmp_path: Path) -> None:
    made = make_untrained_bundle(tmp_path / "bad", seed=2)
    weights = made / "registration.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    put_in_place(made, release)
    log = served.data_folder / "logs" / "desk.jsonl"
    until(lambda: "weights_digest" in log.read_text(encoding="utf-8"))
    assert version(served) == "0"
    assert served.call("GET", "/readyz", token=None).status_code == 200


def test_fault_69_registry_gone(served: Served, release: Path) -> None:
    case = served.planned_case()
    shutil.rmtree(release)
    time.sleep(2)
    headers = {"Idempotency-Key": "without-a-registry", "Prefer": "wait=60"}
    answer = served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers)
    assert answer.status_code == 200, answer.text
    release.mkdir()


def test_fault_49_release_is_shown_not_set(served: Served) -> None:
    shown = served.call("GET", "/v1/release").json()
    assert set(shown["networks"]) == {"synthesis", "inpainting", "registration"}
    assert all(len(entry["sha256"]) == 64 for entry in shown["networks"].values())
    problem(served.call("PUT", "/v1/release", json={}), 405, "method_not_allowed")
