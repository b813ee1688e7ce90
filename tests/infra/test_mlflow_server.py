"""mlflow/server/run.sh with basic authentication, on a real PostgreSQL and a real S3 (moto's server)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from postgres import PASSWORD, fresh_database
from small_release import evaluation, small_release
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import load_config
from hepalign.distributed.workers import train
from hepalign.errors import WorkFailedError
from hepalign.tracking import ledger
from hepalign.tracking.promotion import history, promote, rollback
from hepalign.tracking.registry import client, ping
from hepalign.tracking.release_folder import release_sha256
from hepalign.tracking.releases import register_release
from hepalign.tracking.resolution import resolve_release

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ADMIN_PASSWORD = "a-long-made-up-word"
POLICY = "min_cases: 1\nthresholds: []\ncheck_leaks: true\n"


@contextmanager
def mlflow_server(folder: Path, **environment: str) -> Iterator[str]:
    """The address of a server started as an operator does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HEPALIGN_MLFLOW_DATA": str(folder / "server"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "made-up", **environment,
    }  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [ROOT / "mlflow/server/run.sh", "--port", str(port), "--workers", "1"],
            cwd=folder, env=values, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while status(address, "/health") != 200:
            said = (folder / "server.log").read_text(encoding="utf-8")[-3000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def status(address: str, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="mlflow")
        yield s3
    server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bucket: Any, postgres: str) -> Iterator[str]:
    database = fresh_database(postgres, "mlflow")
    places = {
        # the password comes by libpq's own variable, so that it stands in no file
        "HEPALIGN_MLFLOW_DATABASE": database.replace(f":{PASSWORD}@", "@"),
        "PGPASSWORD": PASSWORD,
        "HEPALIGN_MLFLOW_ARTIFACTS": "s3://mlflow",
        "HEPALIGN_MLFLOW_HOSTS": "127.0.0.1:*,mlflow:5000",
    }
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), **places) as address:
        yield address


@pytest.fixture
def owner(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The server, with the administrator's name and password in the environment."""
    chosen = {
        "MLFLOW_TRACKING_URI": server, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN_PASSWORD,
        "HEPALIGN_CACHE": str(tmp_path / "cache"), "HEPALIGN_RELEASE": "",
    }  # fmt: skip
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(config_module.COMPONENTS, "toy", ("toy_stage", "ToyConfig"))
    return server


def test_nobody_comes_in_without_a_password(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(server, experiments) == 401
    assert status(server, experiments, Authorization="Basic YWRtaW46d3Jvbmc=") == 401
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(WorkFailedError, match="MLFLOW_TRACKING_PASSWORD"):
        ping()
    # a page elsewhere cannot reach it under a name of its own
    assert status(server, "/health", Host="evil.example") in (200, 403)
    assert status(server, experiments, Host="evil.example") == 403
    assert status(server, experiments, Host="mlflow:5000") == 401


def test_a_training_is_tracked_and_its_files_lie_in_the_bucket(owner: str, bucket: Any, tmp_path: Path) -> None:
    config = load_config("toy", {"out": str(tmp_path), "name": "tracked", "training": {"epochs": 2}})
    result = train(config, build=build_toy)
    run = client().get_run(str(result.run_id))
    assert (run.info.status, run.data.params["training.epochs"]) == ("FINISHED", "2")
    assert len(client().get_metric_history(run.info.run_id, "val/error")) == 2
    keys = [part["Key"] for part in bucket.list_objects_v2(Bucket="mlflow")["Contents"]]
    for name in ("config.yaml", "curves.csv", "pictures/fit-0001.png"):
        assert any(key.endswith(f"{run.info.run_id}/artifacts/{name}") for key in keys), name


@pytest.mark.slow
def test_releases_are_promoted_loaded_and_rolled_back(owner: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    for seed in (1, 2):
        release = small_release(tmp_path / str(seed), seed)
        judged = evaluation(tmp_path / f"e{seed}", release, {"case-1": 2.0})
        promote(str(release), evaluation=judged, policy=policy, reason=f"release {seed}", who="owner")
    assert [row["reason"] for row in history()] == ["release 2", "release 1"]
    assert rollback(reason="worse", who="owner")["version"] == "1"
    fetched = resolve_release("models:/hepalign@champion")
    assert release_sha256(fetched) == release_sha256(tmp_path / "1/release")


@pytest.mark.slow
def test_fault_82_on_postgresql_of_many_promotions_at_once_one_wins(owner: str, tmp_path: Path) -> None:
    """All of them read the same history; PostgreSQL lets one take the next entry."""
    version = register_release(small_release(tmp_path, 3))
    head = ledger.entries(client())
    facts = {"release_sha256": "a" * 64, "gate_sha256": "", "reason": "at once", "who": "somebody"}

    def take(number: int) -> str:
        try:
            ledger.append(client(owner), head, action="promote", version=version, **facts)
        except WorkFailedError as error:
            return error.code
        return "won"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(take, range(4)))
    assert outcomes == ["promotion_conflict"] * 3 + ["won"]
    assert len(ledger.entries(client())) == len(head) + 1


@pytest.mark.slow
def test_by_itself_it_takes_sqlite_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
    with mlflow_server(tmp_path) as address:
        api = client(address)
        run = api.create_run(api.create_experiment("x"))
        api.log_text(run.info.run_id, "hello", "a.txt")
        assert status(address, "/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert (tmp_path / "server/mlflow.db").is_file()
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "server/artifacts").rglob("a.txt")] == ["hello"]
    assert (tmp_path / "server/auth.ini").stat().st_mode & 0o077 == 0


def test_without_a_password_it_does_not_start(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_AUTH_ADMIN_PASSWORD"}
    done = subprocess.run(
        [ROOT / "mlflow/server/run.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr
