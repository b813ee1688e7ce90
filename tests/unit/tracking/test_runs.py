"""Tracking: one run per training, resumed, nothing lost while MLflow is away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from toy_stage import ToyStage, build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, TrackingConfig, load_config
from hepalign.distributed.workers import train
from hepalign.errors import WorkFailedError
from hepalign.tracking import runs
from hepalign.tracking.registry import client
from hepalign.tracking.releases import fetch_training
from hepalign.tracking.runs import RunLog, close_run, open_run, send_pending, write_curves


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_module.COMPONENTS, "toy", ("toy_stage", "ToyConfig"))


def toy_config(out: Path, *overrides: str) -> RunConfig:
    return load_config("toy", {"out": str(out), "name": "tracked", "training": {"epochs": 3}}, overrides)


def test_a_training_is_one_run_with_params_curves_tags_and_pictures(mlflow: str, tmp_path: Path) -> None:
    result = train(toy_config(tmp_path, "losses.style=60"), build=build_toy)
    assert result.run_id is not None
    api = client()
    run = api.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["losses.style"], run.data.params["training.epochs"]) == ("60.0", "3")
    assert run.data.tags["stage"] == "toy"
    assert {"commit", "torch", "python", "research_use_only"} <= run.data.tags.keys()
    assert len(api.get_metric_history(result.run_id, "val/error")) == 3
    assert {artifact.path for artifact in api.list_artifacts(result.run_id)} >= {
        "config.yaml", "curves.csv", "metrics.json", "pictures",
    }  # fmt: skip


def test_a_restarted_training_goes_on_in_its_run_and_repeats_no_row(mlflow: str, tmp_path: Path) -> None:
    class DiedError(Exception):
        pass

    def dies_in_the_second_epoch(config: object, device: object) -> ToyStage:
        stage = build_toy(config, device)  # type: ignore[arg-type]

        def before(number: int) -> None:
            if number == 6:
                raise DiedError

        stage.before_batch = before
        return stage

    with pytest.raises(DiedError):
        train(toy_config(tmp_path), build=dies_in_the_second_epoch)
    api = client()
    broken = api.search_runs([experiment.experiment_id for experiment in api.search_experiments()])
    assert [run.info.status for run in broken] == ["FAILED"]
    result = train(toy_config(tmp_path), resume=True, build=build_toy)
    assert result.run_id == broken[0].info.run_id
    history = api.get_metric_history(str(result.run_id), "val/error")
    assert sorted(metric.step for metric in history) == [4, 8, 12]
    assert api.get_run(str(result.run_id)).info.status == "FINISHED"


def test_what_mlflow_missed_is_sent_later(
    mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = toy_config(tmp_path, "tracking.uri=http://127.0.0.1:9")
    result = train(away, build=build_toy)
    assert result.run_id is None
    assert "MLflow is away" in capsys.readouterr().err
    assert len(result.metrics) > 3

    assert send_pending(tmp_path, TrackingConfig(uri=mlflow)) == ["tracked"]
    assert send_pending(tmp_path, TrackingConfig(uri=mlflow)) == []
    api = client()
    run = api.search_runs([experiment.experiment_id for experiment in api.search_experiments()])[0]
    assert run.data.params["training.epochs"] == "3"
    assert len(api.get_metric_history(run.info.run_id, "val/error")) == 3
    assert run.info.status == "FINISHED"


def test_a_run_that_is_ended_twice_at_once_is_ended(
    mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    complete = runs._complete

    def beside_another(api: MlflowClient, run_id: str, folder: Path, status: str) -> None:
        complete(api, run_id, folder, status)
        (folder / runs.PENDING).unlink()

    monkeypatch.setattr(runs, "_complete", beside_another)
    assert close_run(toy_config(tmp_path), "KILLED") == result.run_id
    assert client(mlflow).get_run(str(result.run_id)).info.status == "KILLED"
    (tmp_path / "tracked" / runs.PENDING).write_text("FINISHED")
    assert send_pending(tmp_path, TrackingConfig(uri=mlflow)) == ["tracked"]


def test_patient_ids_stay_out(mlflow: str, tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    run = client().get_run(str(result.run_id))
    assert "case-" not in str(run.data.to_dictionary())


def away_for(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """MLflow's client cannot be had the next so many times."""
    left = iter(range(calls))
    real = runs.client

    def sometimes(uri: str | None = None) -> MlflowClient:
        if next(left, None) is not None:
            raise MlflowException("away")
        return real(uri)

    monkeypatch.setattr(runs, "client", sometimes)
    monkeypatch.setattr(runs, "RETRY_AFTER_S", 0.0)


@pytest.mark.parametrize("failures", [2, 50], ids=["back during the training", "away to its end"])
def test_nothing_is_lost_while_mlflow_is_away(
    mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    config = toy_config(tmp_path, "training.epochs=4")
    run_id = open_run(config, {"commit": "abc"})
    assert run_id is not None
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    log = RunLog(mlflow, run_id, config.tracking)
    rows = [{"epoch": float(n), "step": 4.0 * (n + 1), "train/loss": 1.0 / (n + 1)} for n in range(4)]
    with monkeypatch.context() as patch:
        away_for(patch, failures)
        for row in rows:
            log.send(row, {"fit": picture})
    log.unsent.keep(config.folder)
    assert (config.folder / "mlflow-unsent").exists() == (failures == 50)
    write_curves(config.folder / "curves.csv", rows)
    assert close_run(config) == run_id

    api = client(mlflow)
    for name in ("train/loss", "system/cpu_utilization_percentage", "system/process_memory_megabytes"):
        steps = [metric.step for metric in api.get_metric_history(run_id, name)]
        assert steps == [4, 8, 12, 16], name
    stored = [artifact.path for artifact in api.list_artifacts(run_id, "pictures")]
    assert sorted(stored) == [f"pictures/fit-{n:04d}.png" for n in range(4)]
    with Image.open(api.download_artifacts(run_id, "pictures/fit-0001.png")) as sent:
        assert np.array_equal(np.asarray(sent), picture)
    assert not (config.folder / "mlflow-unsent").exists()


def test_pictures_come_every_so_often(mlflow: str, tmp_path: Path) -> None:
    result = train(toy_config(tmp_path, "training.epochs=5", "tracking.pictures_every_epochs=2"), build=build_toy)
    stored = [artifact.path for artifact in client().list_artifacts(str(result.run_id), "pictures")]
    assert sorted(stored) == [f"pictures/fit-{n:04d}.png" for n in (0, 2, 4)]


def test_a_run_that_its_server_lost_is_made_again(mlflow: str, tmp_path: Path) -> None:
    first = train(toy_config(tmp_path), build=build_toy)
    client().delete_run(str(first.run_id))
    again = train(toy_config(tmp_path, "training.epochs=4"), resume=True, build=build_toy)
    assert again.run_id != first.run_id
    assert len(client().get_metric_history(str(again.run_id), "val/error")) == 4


def test_a_training_is_fetched_from_its_run_as_a_release_is_built_from_it(mlflow: str, tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    fetched = fetch_training(f"runs:/{result.run_id}")
    assert {path.name for path in fetched.iterdir()} == {
        "toy.safetensors", "toy.json", "training.json", "metrics.json",
    }  # fmt: skip
    assert (fetched / "toy.safetensors").read_bytes() == (result.folder / "toy.safetensors").read_bytes()
    with pytest.raises(WorkFailedError) as caught:
        fetch_training("runs:/0123456789abcdef0123456789abcdef")
    assert caught.value.code == "tracking_unreachable"
