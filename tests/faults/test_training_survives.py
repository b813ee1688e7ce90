"""Nodes and drivers that vanish (fault 76, and 75 and 80 beyond one process): each run ends bitwise where an
uninterrupted one of as many workers ends."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import torch
from moto.server import ThreadedMotoServer
from ray_nodes import Nodes, driver, ended, ray_nodes, until

from hepalign.tracking.runs import read_curves

pytestmark = pytest.mark.slow
DASHBOARD = Path(__file__).parents[2] / "infra/monitoring/grafana/dashboards/training.json"
# Ray Train asks for notices every 5 s.
NOTICED_S = 10
OUTCOME = ("curves.csv", "toy.safetensors", "metrics.json")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture
def two_nodes(cluster: Nodes) -> Iterator[Nodes]:
    cluster.add()
    cluster.add()
    yield cluster
    cluster.drop_all()


def settings(out: Path, name: str = "run", **changed: Any) -> dict[str, Any]:
    """24 cases in batches of 2 over 2 ranks: 6 batches an epoch."""
    training = {"epochs": 3, "checkpoint_every_steps": 1} | changed.pop("training", {})
    workers = {"count": 2, "max_failures": 3} | changed.pop("workers", {})
    platform = {"out": str(out), "name": name, "training": training, "workers": workers, "tracking": {"enabled": False}}
    return {"cases": 24, "batch_s": 0.5, **platform, **changed}


def outcome(out: Path, name: str = "run") -> dict[str, bytes]:
    return {file: (out / name / file).read_bytes() for file in OUTCOME}


def checkpoints(out: Path) -> list[Path]:
    return list(out.rglob("common.pt"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    ended(driver(settings(out, batch_s=0.0)))
    return outcome(out)


def test_fault_76_a_node_is_lost_and_another_comes(
    two_nodes: Nodes, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    training = two_nodes.train(settings(tmp_path))
    until(lambda: len(checkpoints(tmp_path)) >= 2, "checkpoints")
    two_nodes.running[1].lose()
    time.sleep(3)
    two_nodes.add()
    ended(training)
    assert outcome(tmp_path) == uninterrupted


def test_fault_76_an_elastic_training_goes_on_with_the_workers_left_and_grows_again(
    two_nodes: Nodes, tmp_path: Path
) -> None:
    elastic = {"min_count": 1, "resize_every_s": 2.0}
    length = {"epochs": 9, "checkpoint_every_steps": 3}
    training = two_nodes.train(settings(tmp_path, batch_s=0.3, training=length, workers=elastic))
    until(lambda: len(checkpoints(tmp_path)) >= 2, "checkpoints")
    two_nodes.running[1].lose()
    until(lambda: any(position["epoch"] >= 2 for position in positions(tmp_path)), "epochs with one worker")
    two_nodes.add()
    ended(training)
    curves = read_curves(tmp_path / "run/curves.csv")
    assert [row["epoch"] for row in curves] == list(range(9))
    # 24 cases in batches of 2: 6 steps an epoch on two workers, 12 on the one that is left
    steps = [later["step"] - earlier["step"] for earlier, later in itertools.pairwise(curves)]
    assert 12 in steps
    assert 6 in steps[steps.index(12) :]


def positions(out: Path) -> list[dict[str, int]]:
    """Where the checkpoints in storage stand; those that are being copied are left out."""
    found = []
    for path in checkpoints(out):
        with contextlib.suppress(OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            found.append(torch.load(path, weights_only=True)["position"])
    return found


def test_fault_76_a_notice_of_preemption_is_answered_with_a_checkpoint(
    two_nodes: Nodes, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    """Without the notice the first checkpoint would come at the epoch's end: all of the epoch would be lost."""
    none = {"checkpoint_every_steps": None}
    training = two_nodes.train(settings(tmp_path, gate=str(tmp_path / "gate"), training=none))
    until((tmp_path / "reached").exists, "the fourth batch")
    two_nodes.notice(two_nodes.alive()[0])
    time.sleep(NOTICED_S)
    (tmp_path / "gate").touch()
    answer = (0, 5)
    until(lambda: answer in [(p["epoch"], p["step"]) for p in positions(tmp_path)], "a checkpoint within the epoch")
    two_nodes.add()
    ended(training)
    assert outcome(tmp_path) == uninterrupted


def test_prometheus_finds_every_series_of_the_training_dashboard(two_nodes: Nodes, tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    queries = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    # no GPU here, and a group's end comes when nobody looks any more
    absent = {"ray_node_gpus_utilization", "ray_train_worker_group_shutdown_total_time_s"}
    wanted = set(re.findall(r"\bray_\w+", queries)) - absent
    assert len(wanted) > 10
    training = two_nodes.train(settings(tmp_path, batch_s=2.5))
    found: set[str] = set()

    def seen() -> bool:
        # what Ray sets once it shows for a few scrapes only
        found.update(two_nodes.metrics())
        return wanted <= found or training.poll() is not None

    until(seen, "the metrics")
    assert wanted - found == set()
    # ours stay between two reports, or an alert on a silent training would lose sight of it
    ours = {name for name in wanted if name.startswith("ray_hepalign")}
    for _ in range(4):
        assert ours - two_nodes.metrics() == set()
        time.sleep(1)
    ended(training)


def test_a_driver_vanishes_and_the_job_goes_on(
    two_nodes: Nodes, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    training = two_nodes.train(settings(tmp_path))
    until(lambda: len(checkpoints(tmp_path)) >= 2, "checkpoints")
    kill(training)
    until(lambda: (tmp_path / "run/training.json").is_file(), "the result that nobody waits for")
    assert outcome(tmp_path) == uninterrupted


def test_resume_waits_for_the_training_that_a_vanished_driver_left_behind(
    two_nodes: Nodes, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    training = two_nodes.train(settings(tmp_path))
    until(lambda: len(checkpoints(tmp_path)) >= 2, "checkpoints")
    kill(training)
    said = ended(two_nodes.train(settings(tmp_path), "--resume"))
    assert "run is still at work: waiting for it" in said
    assert outcome(tmp_path) == uninterrupted


def test_an_interrupted_driver_takes_its_job_along(two_nodes: Nodes, tmp_path: Path) -> None:
    training = two_nodes.train(settings(tmp_path, batch_s=2.0))
    until(lambda: checkpoints(tmp_path), "a checkpoint")
    training.terminate()
    training.communicate(timeout=120)
    time.sleep(5)
    stood = len(list(tmp_path.rglob("*")))
    time.sleep(8)
    assert len(list(tmp_path.rglob("*"))) == stood
    assert not (tmp_path / "run/training.json").exists()


def test_a_killed_driver_with_a_cluster_of_its_own_leaves_nothing_and_resumes(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    training = driver(settings(tmp_path))
    until(lambda: len(checkpoints(tmp_path)) >= 2, "checkpoints")
    started = psutil.Process(training.pid).children(recursive=True)
    assert started
    kill(training)
    # Ray's agents first try for a minute to tell a head that is gone
    _, left = psutil.wait_procs(started, timeout=180)
    assert [process.name() for process in left] == []
    ended(driver(settings(tmp_path), "--resume"))
    assert outcome(tmp_path) == uninterrupted


def test_a_killed_search_is_resumed_without_its_finished_trials(tmp_path: Path) -> None:
    space = {"learning_rate": {"log_uniform": [0.0001, 0.2]}}
    searching = {"search": {"trials": 4, "concurrent": 1, "grace_epochs": 9, "space": space}, "batch_s": 0.3}
    chosen = settings(tmp_path, "search", workers={"count": 0}, training={"epochs": 2}, **searching)
    search = driver(chosen, "--tune")
    until(lambda: len(list(tmp_path.glob("search/trials/*/metrics.json"))) >= 2, "two finished trials")
    kill(search)
    changed = chosen | {"search": searching["search"] | {"trials": 5}}
    refused = driver(changed, "--tune", "--resume")
    told, _ = refused.communicate(timeout=120)
    assert refused.returncode != 0
    assert "other values of search" in told
    # Tune may ask again for a trial that ended just before the kill: it must not be trained again
    ends = [path.parent for path in tmp_path.glob("search/trials/*/metrics.json")]
    finished = {path: path.stat().st_mtime_ns for end in ends for path in end.glob("checkpoints/*/common.pt")}
    ended(driver(chosen, "--tune", "--resume"))
    with (tmp_path / "search/trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(math.isfinite(float(row["score"])) for row in rows)
    again = {path: path.stat().st_mtime_ns for end in ends for path in end.glob("checkpoints/*/common.pt")}
    assert again == finished
    # none was stopped early here: each has its weights
    assert len(list(tmp_path.glob("search/trials/*/toy.safetensors"))) == 4


def kill(training: subprocess.Popen[str]) -> None:
    """kill -9 of the driver alone."""
    os.kill(training.pid, signal.SIGKILL)
    training.communicate()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A real S3 over HTTP, and the environment that leads to it."""
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield environment
    server.stop()


def test_fault_80_checkpoints_in_a_bucket_uploaded_aside_damaged_and_found_from_elsewhere(
    tmp_path: Path, bucket: dict[str, str], uninterrupted: dict[str, bytes]
) -> None:
    """Killed in the middle, its newest checkpoint damaged in the bucket, resumed by name on another disk."""
    storage = {"storage": "s3://runs/checkpoints", "upload": "async"}
    training = driver(settings(tmp_path / "here", workers=storage), **bucket)
    s3 = boto3.client("s3")

    def parts() -> list[dict[str, Any]]:
        found = s3.list_objects_v2(Bucket="runs", Prefix="checkpoints/run/").get("Contents", [])
        return sorted((part for part in found if part["Key"].endswith("common.pt")), key=lambda p: p["LastModified"])

    until(lambda: len(parts()) >= 3, "checkpoints in the bucket")
    kill(training)
    time.sleep(3)
    s3.put_object(Bucket="runs", Key=parts()[-1]["Key"], Body=b"damaged")
    said = ended(driver(settings(tmp_path / "there", workers=storage), "--resume", **bucket))
    assert outcome(tmp_path / "there") == uninterrupted
    assert len(parts()) <= 3 + 1, said[-2000:]

    again = driver(settings(tmp_path / "elsewhere", workers=storage), **bucket)
    told, _ = again.communicate(timeout=240)
    assert again.returncode != 0
    assert "--resume goes on with it" in told
