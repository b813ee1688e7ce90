"""Ray Train: two gloo workers; the tests share one private cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import toy_stage
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, load_config
from hepalign.distributed.cluster import ray_session
from hepalign.distributed.workers import train
from hepalign.errors import UsageError, WorkFailedError
from hepalign.tracking.runs import read_curves


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(toy_stage)
    with ray_session(num_cpus=2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(toy_stage)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.COMPONENTS, "toy", ("toy_stage", "ToyConfig"))


def toy_config(out: Path, *overrides: str) -> RunConfig:
    base = {
        "out": str(out),
        "name": "toy-run",
        "training": {"epochs": 2},
        "tracking": {"enabled": False},
        "workers": {"count": 2, "max_failures": 0},
    }
    return load_config("toy", base, overrides)


def test_two_workers_see_other_halves_and_agree(tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    curves = read_curves(result.folder / "curves.csv")
    # 8 cases, batches of 2, 2 ranks: 2 steps an epoch on each
    assert [row["step"] for row in curves] == [2, 4]
    assert (result.folder / "toy.safetensors").is_file()


def test_fault_77_on_workers_names_the_cases_and_is_not_retried(tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError) as caught:
        train(toy_config(tmp_path, "poisoned_case=case-3", "workers.max_failures=5"), build=build_toy)
    assert caught.value.code == "loss_not_finite"
    assert "case-3" in caught.value.message


def test_more_workers_than_cpus_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        train(toy_config(tmp_path, "workers.count=3"), build=build_toy)
    assert caught.value.code == "too_few_cpus"
