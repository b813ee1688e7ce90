"""Faults of training and tuning on Ray's workers (75, 77, 78, 79, 80); one private cluster for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import toy_stage
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, load_config
from hepalign.distributed.cluster import ray_session
from hepalign.distributed.tuning import tune
from hepalign.distributed.workers import train
from hepalign.errors import UsageError, WorkFailedError

SPACE = {"search": "{trials: 2, space: {losses.style: {log_uniform: [12.0, 1200.0]}}}"}
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    config_module.COMPONENTS["toy"] = ("toy_stage", "ToyConfig")
    ray.cloudpickle.register_pickle_by_value(toy_stage)
    with ray_session(num_cpus=2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(toy_stage)
    del config_module.COMPONENTS["toy"]


def toy_config(out: Path, **settings: object) -> RunConfig:
    base = {
        "out": str(out),
        "name": "toy-run",
        "training": {"epochs": 2, "checkpoint_every_steps": 1},
        "tracking": {"enabled": False},
        "workers": {"count": 2, "max_failures": 1},
    }
    return load_config("toy", base, [f"{key}={value}" for key, value in settings.items()])


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the files that must come out the same."""

    folder: Path
    contents: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        names = ("curves.csv", "toy.safetensors", "metrics.json")
        return cls(folder, {name: (folder / name).read_bytes() for name in names})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome.of(train(toy_config(tmp_path_factory.mktemp("whole")), build=build_toy).folder)


def test_two_workers_share_the_cases(uninterrupted: Outcome) -> None:
    """8 cases in batches of 2 over 2 ranks are 2 steps an epoch."""
    curves = uninterrupted.contents["curves.csv"].decode().splitlines()
    assert [line.split(",")[1] for line in curves[1:]] == ["2.0", "4.0"]


def test_fault_75_a_worker_killed_mid_epoch_resumes_to_the_same_numbers(tmp_path: Path, uninterrupted: Outcome) -> None:
    mark = tmp_path / "killed"
    result = train(toy_config(tmp_path, killed_at=4, killed_once=mark), build=build_toy)
    assert mark.exists()
    assert Outcome.of(result.folder).contents == uninterrupted.contents


def test_fault_80_on_workers_a_damaged_checkpoint_gives_way_to_the_one_before(uninterrupted: Outcome) -> None:
    """The newest checkpoint of a finished run is damaged; resuming repeats the last step, to the same numbers."""
    folder = uninterrupted.folder
    newest = max((folder / "checkpoints").rglob("common.pt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])
    left_by_a_lost_worker = newest.parent.with_name("checkpoint_2026-01-01")
    left_by_a_lost_worker.mkdir()
    for name in uninterrupted.contents:
        (folder / name).unlink()
    again = train(toy_config(folder.parent), resume=True, build=build_toy)
    assert Outcome.of(again.folder).contents == uninterrupted.contents
    assert not left_by_a_lost_worker.exists()


def test_fault_77_on_workers_nan_names_the_cases_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError) as caught:
        train(toy_config(tmp_path, poisoned_case="case-3"), build=build_toy)
    assert caught.value.code == "loss_not_finite"
    assert "case-3" in caught.value.message


def test_fault_78_more_cpus_than_exist_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        train(toy_config(tmp_path / "train", **{"workers.count": 3}), build=build_toy)
    assert caught.value.code == "too_few_cpus"
    # two workers fit, but not beside the trial's own driver
    with pytest.raises(UsageError) as caught:
        tune(toy_config(tmp_path / "tune", **SPACE), build=build_toy)
    assert caught.value.code == "too_few_cpus"


def test_fault_79_when_every_trial_fails_the_search_fails(tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError, match="made to fail") as caught:
        tune(toy_config(tmp_path, fails=True, **{"workers.count": 0}, **SPACE), build=build_toy)
    assert caught.value.code == "all_trials_failed"
    assert caught.value.exit_code == 1
    assert not (tmp_path / "toy-run/best.yaml").exists()
