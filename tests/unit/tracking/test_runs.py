"""Tracking: one run per training, resumed, nothing lost while MLflow is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_stage import ToyStage, build_toy

from hepalign import config as config_module
from hepalign.config import RunConfig, TrackingConfig, load_config
from hepalign.distributed.workers import train
from hepalign.tracking.registry import client
from hepalign.tracking.runs import send_pending


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


def test_patient_ids_stay_out(mlflow: str, tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), build=build_toy)
    run = client().get_run(str(result.run_id))
    assert "case-" not in str(run.data.to_dictionary())
