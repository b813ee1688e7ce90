"""What needs a cluster and is no fault: the search, and the map over tasks. One private cluster for all."""

from __future__ import annotations

import csv
import operator
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import toy_stage
from mlflow_store import isolated
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, load_config
from hepalign.distributed.cluster import ray_session, require_cpus
from hepalign.distributed.evaluation import ray_map
from hepalign.distributed.outliving import await_earlier, outliving
from hepalign.distributed.tuning import tune
from hepalign.distributed.workers import train
from hepalign.errors import BadInputError, UsageError, WorkFailedError
from hepalign.tracking.registry import client

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    config_module.COMPONENTS["toy"] = ("toy_stage", "ToyConfig")
    ray.cloudpickle.register_pickle_by_value(toy_stage)
    with ray_session(num_cpus=2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(toy_stage)
    del config_module.COMPONENTS["toy"]


def search_config(out: Path, *overrides: str) -> RunConfig:
    base = {
        "out": str(out),
        "name": "search",
        "training": {"epochs": 4},
        "search": {
            "trials": 3,
            "space": {"learning_rate": {"log_uniform": [0.0001, 0.2]}, "losses.style": {"choice": [60.0, 120.0]}},
            "start": [{"learning_rate": 0.1, "losses.style": 120.0}],
        },
    }
    return load_config("toy", base, overrides)


def test_a_search_finds_the_best_and_writes_it_as_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in isolated(tmp_path / "mlflow").items():
        monkeypatch.setenv(name, value)
    result = tune(search_config(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/mlflow/mlflow.db"), build=build_toy)
    with (result.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert result.score == min(float(row["score"]) for row in rows)
    assert {"0.1", "120.0"} <= {row["learning_rate"] for row in rows} | {row["losses.style"] for row in rows}
    assert (result.folder / "report.png").stat().st_size > 10_000
    assert result.config.read_text(encoding="utf-8").startswith("# Command: hepalign train toy --config best.yaml")
    winner = load_config("toy", result.config)
    assert winner.search is None
    assert winner.flat()["learning_rate"] == result.best["learning_rate"]
    # a training by that file scores what the trial scored
    again = train(winner, build=build_toy)
    assert again.metrics["score"] == result.score

    api = client()
    runs = api.search_runs([experiment.experiment_id for experiment in api.search_experiments()])
    parents = [run.info.run_id for run in runs if run.info.run_name == "search"]
    assert len(parents) == 1
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0]]
    assert len(nested) == 3
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


def test_a_search_is_not_mixed_with_another_and_knows_its_keys(tmp_path: Path) -> None:
    (tmp_path / "search/tune").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        tune(search_config(tmp_path), build=build_toy)
    assert caught.value.code == "run_exists"
    with pytest.raises(UsageError, match="learning_rat"):
        tune(search_config(tmp_path / "b", "search.space.learning_rat.uniform=[0.1,0.2]"), build=build_toy)
    with pytest.raises(UsageError) as caught:
        tune(load_config("toy", {"out": str(tmp_path)}), build=build_toy)
    assert caught.value.code == "no_search"


def test_a_map_over_tasks_gives_every_result_once() -> None:
    found = sorted(ray_map(workers=2)(partial(operator.mul, 2), range(7)))
    assert found == [0, 2, 4, 6, 8, 10, 12]


def test_an_error_in_a_task_keeps_its_code() -> None:
    with pytest.raises(BadInputError) as caught:
        list(ray_map(workers=1)(toy_stage.refuse, ["a"]))
    assert caught.value.code == "made_to_fail"


def test_what_the_cluster_cannot_hold_is_refused() -> None:
    require_cpus(2.0, "this")
    with pytest.raises(UsageError, match=r"needs 2\.5 CPUs and the cluster has 2"):
        require_cpus(2.5, "this")


def test_work_that_outlives_its_asker_tells_its_result_its_error_and_its_loss(tmp_path: Path) -> None:
    assert outliving("five", str(tmp_path), lambda: 5) == 5

    def fails() -> None:
        raise BadInputError("made to fail", code="made_to_fail")

    with pytest.raises(BadInputError, match="made to fail"):
        outliving("fails", str(tmp_path), fails)
    with pytest.raises(WorkFailedError, match="--resume") as caught:
        outliving("lost", str(tmp_path), lambda: os._exit(1))
    assert caught.value.code == "training_failed"
    # what has ended is nothing to wait for
    await_earlier("five", str(tmp_path))
