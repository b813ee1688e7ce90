"""One MLflow run per training, gone on with after a restart, and complete even when MLflow was away for a while.

The run's folder is the truth: `config.yaml`, `curves.csv`, `metrics.json`, `facts.json`. Rank 0 sends rows and pictures
as they come; what could not be sent is sent by `close_run`, and if MLflow is still away then, by `send_pending` later.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from hepalign.config import RunConfig, TrackingConfig
from hepalign.tracking.address import tracking_uri
from hepalign.tracking.machine import Machine
from hepalign.tracking.registry import client, ensure_experiment
from hepalign.training.progress import warn

PENDING = "mlflow-pending"
UNSENT = "mlflow-unsent"
RUN_FILE = "run.json"
TRAINING = "training"
# While MLflow is away, training goes on and asks again only this often.
RETRY_AFTER_S = 30.0
# One request may carry this many (MLflow's limits).
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, 1000


def open_run(config: RunConfig, facts: Mapping[str, str], parent: str | None = None) -> str | None:
    """The id of the folder's run, which is made if there is none; None when MLflow is away or not wanted.

    Args:
        facts: what else made the result (commit, versions, data digests); stored as tags.
        parent: the run that this one is nested in; MLFLOW_RUN_ID (set by `mlflow run`) unless given.
    """
    parent = parent or os.environ.get("MLFLOW_RUN_ID")
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    told = dict(facts) | ({"parent": parent} if parent else {})
    (folder / "facts.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    if not config.tracking.enabled:
        return None
    try:
        run_id = _find_or_create(config, folder)
        client(tracking_uri(config.tracking, config.out)).update_run(run_id, status="RUNNING")
    except (MlflowException, OSError) as error:
        warn(f"MLflow is away ({type(error).__name__}); the run is kept in {folder.name} and sent later")
        return None
    return run_id


@dataclass
class Unsent:
    """What MLflow has not got yet: rows by step, and pictures by file name."""

    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def keep(self, folder: Path) -> None:
        """Write it into a run's folder, for `close_run` and `send_pending`."""
        if not self.rows and not self.pictures:
            return
        (folder / UNSENT / "pictures").mkdir(parents=True, exist_ok=True)
        write_curves(folder / UNSENT / "rows.csv", list(self.rows.values()))
        for name, picture in self.pictures.items():
            Image.fromarray(picture).save(folder / UNSENT / "pictures" / name)


class RunLog:
    """Rank 0's line to MLflow. It never stops a training; what it could not send is in `unsent` at the end."""

    def __init__(self, uri: str, run_id: str | None, tracking: TrackingConfig) -> None:
        self._uri, self._run_id, self._tracking = uri, run_id, tracking
        self._machine = Machine() if tracking.system_metrics else None
        self._retry_at = 0.0
        self.unsent = Unsent()

    def send(self, row: Mapping[str, float], pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Send an epoch's numbers and images, or keep them for the next time."""
        if not row or not self._tracking.enabled:
            return
        epoch = int(row["epoch"])
        self.unsent.rows[int(row["step"])] = {**row, **(self._machine.sample() if self._machine else {})}
        if epoch % self._tracking.pictures_every_epochs == 0:
            self.unsent.pictures |= {f"{name}-{epoch:04d}.png": picture for name, picture in pictures.items()}
        if self._run_id is None or time.monotonic() < self._retry_at:
            return
        try:
            self._flush(self._run_id)
        except (MlflowException, OSError) as error:
            self._retry_at = time.monotonic() + RETRY_AFTER_S
            warn(f"MLflow is away ({type(error).__name__}); training goes on, the numbers are sent later")

    def _flush(self, run_id: str) -> None:
        mlflow = client(self._uri)
        _send_rows(mlflow, run_id, list(self.unsent.rows.values()))
        self.unsent.rows.clear()
        for name in list(self.unsent.pictures):
            mlflow.log_image(run_id, self.unsent.pictures[name], artifact_file=f"pictures/{name}")
            del self.unsent.pictures[name]


def write_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """One row per epoch as CSV; numbers keep all their digits."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)


def read_curves(path: Path) -> list[dict[str, float]]:
    """What `write_curves` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def close_run(config: RunConfig, status: str = "FINISHED") -> str | None:
    """Bring the run in MLflow up to what the folder holds and end it; leaves a mark for `send_pending` if it cannot."""
    if not config.tracking.enabled:
        return None
    folder = config.folder
    (folder / PENDING).write_text(status, encoding="utf-8")
    try:
        run_id = _find_or_create(config, folder)
        _complete(client(tracking_uri(config.tracking, config.out)), run_id, folder, status)
    except (MlflowException, OSError) as error:
        warn(f"MLflow is away ({type(error).__name__}); {folder.name} is sent when the next run starts")
        return None
    # whoever else ends this run (a trial that was stopped, a training that starts beside it) may take the mark first
    (folder / PENDING).unlink(missing_ok=True)
    return run_id


def send_pending(out: Path, tracking: TrackingConfig) -> list[str]:
    """Send the finished runs below `out` that MLflow missed; returns their names."""
    sent: list[str] = []
    for mark in sorted(out.glob(f"*/{PENDING}")):
        stored = OmegaConf.to_container(OmegaConf.load(mark.parent / "config.yaml"))
        assert isinstance(stored, dict)
        config = _StoredRun(mark.parent, tracking, stored)
        try:
            run_id = _find_or_create(config, mark.parent)
            _complete(client(tracking_uri(tracking, out)), run_id, mark.parent, mark.read_text(encoding="utf-8"))
        except (MlflowException, OSError):
            return sent
        mark.unlink(missing_ok=True)
        sent.append(mark.parent.name)
    return sent


class _StoredRun:
    """What `_find_or_create` needs, of a run that only its folder remembers."""

    def __init__(self, folder: Path, tracking: TrackingConfig, flat: dict[Any, Any]) -> None:
        self.folder, self.out, self.name, self.tracking = folder, folder.parent, folder.name, tracking
        self.stage, self._flat = str(flat["stage"]), flat

    def flat(self) -> dict[str, Any]:
        return self._flat


def _find_or_create(config: RunConfig | _StoredRun, folder: Path) -> str:
    mlflow = client(tracking_uri(config.tracking, config.out))
    stored = folder / RUN_FILE
    if stored.is_file():
        run_id = str(json.loads(stored.read_text(encoding="utf-8"))["run_id"])
        if _is_there(mlflow, run_id):
            return run_id
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    parent = facts.pop("parent", None)
    tags = {"stage": config.stage, "research_use_only": "true", **facts}
    if parent:
        tags["mlflow.parentRunId"] = parent
    run = mlflow.create_run(ensure_experiment(mlflow, config.tracking.experiment), tags=tags, run_name=config.name)
    params = [Param(key, str(value)[:6000]) for key, value in dotted(config.flat()).items()]
    for start in range(0, len(params), PARAMS_PER_BATCH):
        mlflow.log_batch(run.info.run_id, params=params[start : start + PARAMS_PER_BATCH])
    stored.write_text(json.dumps({"run_id": run.info.run_id}), encoding="utf-8")
    return str(run.info.run_id)


def _is_there(mlflow: MlflowClient, run_id: str) -> bool:
    """False for a run that was deleted, or that another server had."""
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _send_rows(mlflow: MlflowClient, run_id: str, rows: Sequence[Mapping[str, float]]) -> None:
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name != "step" and math.isfinite(value)
    ]
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        mlflow.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])


def _complete(mlflow: MlflowClient, run_id: str, folder: Path, status: str) -> None:
    rows = {int(row["step"]): row for name in ("curves.csv", f"{UNSENT}/rows.csv") for row in _stored(folder / name)}
    there = {metric.step for metric in mlflow.get_metric_history(run_id, "epoch")}
    _send_rows(mlflow, run_id, [row for step, row in rows.items() if step not in there])
    for name in ("config.yaml", "metrics.json", "curves.csv"):
        if (folder / name).is_file():
            mlflow.log_artifact(run_id, str(folder / name))
    # what `release build` takes, so that a training outlives the node that it ran on
    for weights in folder.glob("*.safetensors") if status == "FINISHED" else ():
        for name in (weights.name, f"{weights.stem}.json", "training.json", "metrics.json"):
            mlflow.log_artifact(run_id, str(folder / name), TRAINING)
    if (folder / UNSENT).is_dir():
        mlflow.log_artifacts(run_id, str(folder / UNSENT / "pictures"), "pictures")
        shutil.rmtree(folder / UNSENT)
    mlflow.log_batch(run_id, tags=[RunTag("folder", folder.name)])
    mlflow.set_terminated(run_id, status)


def _stored(path: Path) -> list[dict[str, float]]:
    return read_curves(path) if path.is_file() else []
