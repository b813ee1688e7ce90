"""Fault 76: a node is lost in training; the run goes on with the workers that are left."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import toy_stage
from ray.cluster_utils import Cluster
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import load_config
from hepalign.distributed.workers import train
from hepalign.tracking.runs import read_curves


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    monkeypatch.setitem(config_module.COMPONENTS, "toy", ("toy_stage", "ToyConfig"))
    ray.cloudpickle.register_pickle_by_value(toy_stage)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(toy_stage)


@pytest.mark.slow
def test_fault_76_training_goes_on_when_a_node_is_lost(two_nodes: Cluster, tmp_path: Path) -> None:
    config = load_config(
        "toy",
        {
            "out": str(tmp_path),
            "name": "elastic",
            "batch_s": 0.5,
            "training": {"epochs": 8, "checkpoint_every_steps": 1},
            "tracking": {"enabled": False},
            "workers": {"count": 2, "min_count": 1, "max_failures": 3},
        },
    )
    lost = threading.Thread(target=_lose_the_second_node, args=(two_nodes, tmp_path / "elastic/checkpoints"))
    lost.start()
    result = train(config, build=build_toy)
    lost.join()
    curves = read_curves(result.folder / "curves.csv")
    assert [row["epoch"] for row in curves] == list(range(8))
    # 8 cases in batches of 2: 2 steps an epoch on two workers, 4 on the one that is left
    steps = [later["step"] - earlier["step"] for earlier, later in itertools.pairwise(curves)]
    assert steps[-1] == 4
    assert len(list(two_nodes.list_all_nodes())) == 1


def _lose_the_second_node(cluster: Cluster, checkpoints: Path) -> None:
    """As soon as training has written something, the node goes without a word."""
    while not list(checkpoints.rglob("common.pt")):
        time.sleep(0.2)
    second = next(iter(cluster.worker_nodes))
    for process in second.all_processes["raylet"]:
        os.kill(process.process.pid, 9)
    cluster.remove_node(second, allow_graceful=False)
