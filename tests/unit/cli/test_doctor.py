"""The doctor names what is wrong and the mend, and never falls over what it looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow_store import isolated

from hepalign.cli import doctor as module
from hepalign.cli.app import run

Rows = dict[str, dict[str, str]]


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    """Calls `hepalign doctor --json`; gives the exit status and the rows by check."""
    for name in ("RAY_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in isolated(tmp_path).items():
        monkeypatch.setenv(name, value)

    def call() -> tuple[int, Rows]:
        with pytest.raises(SystemExit) as ended:
            run(["doctor", "--json"])
        told = json.loads(capfd.readouterr().out)
        return int(ended.value.code or 0), {row["check"]: row for row in told["checks"]}

    return call


def test_it_looks_at_everything_that_runs_depend_on(visit) -> None:  # type: ignore[no-untyped-def]
    _, rows = visit()
    assert {"python", "packages", "processor", "gpu", "memory", "disk", "ray", "mlflow", "s3", "release"} <= rows.keys()
    for name, row in rows.items():
        assert row["state"] in {"ok", "note", "wrong"}
        assert row["found"]
        assert row["state"] == "ok" or row["mend"], f"{name} says what is wrong and not what to do"
    assert rows["packages"]["state"] == "ok", rows["packages"]
    assert rows["mlflow"]["state"] == "ok"


def test_what_does_not_answer_is_named_with_its_mend(visit, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    nobody = "127.0.0.1:9"
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{nobody}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{nobody}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    status, rows = visit()
    assert status == 1
    assert "RAY_ADDRESS" in rows["ray"]["mend"]
    assert "MLFLOW_TRACKING_URI" in rows["mlflow"]["mend"]
    assert "AWS_ENDPOINT_URL" in rows["s3"]["mend"]
    assert {rows[name]["state"] for name in ("ray", "mlflow", "s3")} == {"wrong"}


def test_a_package_that_is_too_old_or_missing_is_named() -> None:
    assert module._unmet(["torch>=2", "torch>=99", "no-such-thing", 'other; extra == "x"']) == [
        f"torch {module._version('torch')}",
        "no-such-thing missing",
    ]


def test_a_check_that_breaks_is_a_finding(visit, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def breaks() -> module.Finding:
        raise ZeroDivisionError

    monkeypatch.setitem(module.CHECKS, "disk", breaks)
    status, rows = visit()
    assert status == 1
    assert rows["disk"]["found"] == "ZeroDivisionError"
