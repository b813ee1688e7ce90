"""Training in this process and on Ray Train's workers gives the same kind of result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_stage
from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, load_config
from hepalign.distributed import worker, workers
from hepalign.distributed.workers import train
from hepalign.errors import UsageError
from hepalign.nets.checkpoint import load_weights
from hepalign.tracking.runs import read_curves
from hepalign.training.world import World


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.COMPONENTS, "toy", ("toy_stage", "ToyConfig"))


def toy_config(out: Path, *overrides: str, **settings: object) -> RunConfig:
    base = {"out": str(out), "name": "toy-run", "training": {"epochs": 3}, "tracking": {"enabled": False}}
    return load_config("toy", base | settings, overrides)


def test_in_this_process_the_folder_holds_the_result(tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    assert result.folder == tmp_path / "toy-run"
    assert {"toy.safetensors", "toy.json", "metrics.json", "config.yaml", "curves.csv", "training.json"} <= {
        path.name for path in result.folder.iterdir()
    }
    assert isinstance(load_weights(result.folder, "toy"), toy_stage.ToyNet)
    curves = read_curves(result.folder / "curves.csv")
    assert [row["epoch"] for row in curves] == [0, 1, 2]
    assert result.metrics["val/error"] == min(row["val/error"] for row in curves)
    assert json.loads((result.folder / "training.json").read_text(encoding="utf-8"))["facts"]["torch"]


def test_a_training_without_cohorts_is_refused_before_it_leaves_anything(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty") as caught:
        train(load_config("inpainting", {"out": str(tmp_path)}))
    assert caught.value.code == "no_cohorts"
    assert list(tmp_path.iterdir()) == []


def test_a_second_training_of_the_same_name_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path), build=build_toy)
    with pytest.raises(UsageError, match="--resume") as caught:
        train(toy_config(tmp_path), build=build_toy)
    assert caught.value.code == "run_exists"


def test_a_resumed_training_may_be_longer_but_not_other(tmp_path: Path) -> None:
    train(toy_config(tmp_path), build=build_toy)
    longer = train(toy_config(tmp_path, "training.epochs=5"), resume=True, build=build_toy)
    assert len(read_curves(longer.folder / "curves.csv")) == 5
    with pytest.raises(UsageError, match="losses") as caught:
        train(toy_config(tmp_path, "losses.style=60"), resume=True, build=build_toy)
    assert caught.value.code == "config_changed"


def cohorts_are(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    told = {"cohorts": {"liver": digest}, "patients": []}
    monkeypatch.setattr(workers, "training_data", lambda opened: told)


def test_a_resumed_training_reads_the_data_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts_are(monkeypatch, "a" * 64)
    train(toy_config(tmp_path), build=build_toy)
    train(toy_config(tmp_path), resume=True, build=build_toy)
    cohorts_are(monkeypatch, "b" * 64)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"data\.liver") as caught:
            train(toy_config(tmp_path), resume=True, build=build_toy)
        assert caught.value.code == "config_changed"


def test_a_training_resumed_from_its_storage_alone_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"workers.storage={tmp_path / 'storage'}"
    cohorts_are(monkeypatch, "a" * 64)
    train(toy_config(tmp_path / "here", storage), build=build_toy)
    with pytest.raises(UsageError) as caught:
        train(toy_config(tmp_path / "there", storage), build=build_toy)
    assert caught.value.code == "run_exists"
    with pytest.raises(UsageError, match="values of losses") as caught:
        train(toy_config(tmp_path / "there", storage, "losses.style=60"), resume=True, build=build_toy)
    train(toy_config(tmp_path / "elsewhere", storage), resume=True, build=build_toy)
    cohorts_are(monkeypatch, "b" * 64)
    with pytest.raises(UsageError, match=r"values of data\.liver"):
        train(toy_config(tmp_path / "there", storage), resume=True, build=build_toy)


def test_a_stage_that_one_worker_cannot_make_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_world", lambda *_: World.local())
    monkeypatch.setattr(worker, "_log", lambda *_: None)
    monkeypatch.setattr(worker, "_tidy", lambda *_: None)
    ended = worker.work({"order": worker.Order(toy_config(tmp_path, "fails=true"), build_toy, "", None)})
    assert ended.error is not None
    assert ended.error.code == "made_to_fail"


def test_a_finished_training_is_returned_by_resume(tmp_path: Path) -> None:
    first = train(toy_config(tmp_path), build=build_toy)
    again = train(toy_config(tmp_path), resume=True, build=build_toy)
    assert again.metrics == first.metrics
