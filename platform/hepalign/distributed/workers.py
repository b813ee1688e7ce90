"""Training a stage: in this process, or on Ray Train's workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import ray.train
import torch

# The same classes as ray.train's, whose annotations still are the first version's.
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train.v2.api.config import RunConfig as TrainRunConfig
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer

from hepalign.cases.cohort import open_cohort
from hepalign.config import RunConfig, load_config, located
from hepalign.distributed.cluster import is_shared, ray_session, require_cpus
from hepalign.distributed.outliving import await_earlier, outliving
from hepalign.distributed.storage import bring_file, has_checkpoints, keep_file, storage_uri
from hepalign.distributed.worker import Ended, Order, StageFactory, work
from hepalign.errors import UsageError, WorkFailedError
from hepalign.stages.stage import Stage
from hepalign.tracking.address import tracking_uri
from hepalign.tracking.provenance import code_commit, environment, preprocessing, training_data
from hepalign.tracking.runs import RunLog, close_run, open_run, send_pending, write_curves
from hepalign.training.checkpoint import BEST
from hepalign.training.loop import FitResult, fit, seed_everything
from hepalign.training.world import Report, World

STAGES = {
    "synthesis": ("hepalign.stages.synthesis", "SynthesisStage"),
    "inpainting": ("hepalign.stages.inpainting", "InpaintingStage"),
    "registration": ("hepalign.stages.registration", "RegistrationStage"),
}
# What a resumed training is compared with; both are kept in `workers.storage` too, where there is one.
CONFIG, FACTS = "config.yaml", "facts.json"
# Controllers that die this often point at the cluster, not at the run.
CONTROLLER_FAILURES = 3


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Args:
        folder: `<stage>.safetensors` and `<stage>.json` (the best weights), `metrics.json`, `curves.csv`,
            `config.yaml` and `training.json` (data digests, commit, versions).
        metrics: of the best epoch.
        run_id: MLflow's; None when MLflow was away or not wanted.
    """

    folder: Path
    metrics: dict[str, float]
    run_id: str | None


def train(
    config: RunConfig,
    resume: bool = False,
    *,
    build: StageFactory | None = None,
    parent_run: str | None = None,
    watch: Callable[[Mapping[str, float]], None] | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> TrainResult:
    """Train one stage as `config` says, into `config.folder`.

    Args:
        resume: go on from the last good checkpoint of the same name, if there is one; a finished run is returned.
        build: makes the stage from the config and a device; the config's own stage unless given.
        parent_run: MLflow's id of the run that this one is nested in.
        watch: called with every epoch's row when `workers.count` is 0.
        callbacks: Ray Train's, for when it is not.

    Raises:
        UsageError: `no_cohorts`, `run_exists` without `resume`, `config_changed` with it, `too_few_cpus`.
        WorkFailedError: as `training.loop.fit`; `training_failed` when workers were lost too often.
    """
    make = build or build_stage
    require_cohorts(config)
    _check_folder(config, resume)
    if config.workers.count == 0:
        run = _begin(config, parent_run)
        return _finished(run, lambda: _train_here(run.config, run.run_id, make, watch))
    with ray_session():
        _check_size(config)
        # A trial ends with its search; any other training on a shared cluster outlives the process that asked for it.
        if callbacks or not is_shared():
            begun = _begin(config, parent_run)
            return _finished(begun, lambda: _train_on_ray(begun.config, begun.run_id, make, callbacks))
        return _train_outliving(config, parent_run, make)


def _train_outliving(config: RunConfig, parent_run: str | None, make: StageFactory) -> TrainResult:
    place = config.workers.storage or str(config.folder.resolve())
    await_earlier(config.name, place)
    begun = _begin(config, parent_run)

    def work() -> TrainResult:
        return _finished(begun, lambda: _train_on_ray(begun.config, begun.run_id, make, ()))

    try:
        return outliving(config.name, place, work)
    except (KeyboardInterrupt, SystemExit):
        close_run(begun.config, "KILLED")
        raise


@dataclass(frozen=True)
class _Run:
    """A training that has its folder and its MLflow run; every place in `config` is absolute."""

    config: RunConfig
    run_id: str | None
    facts: dict[str, str]
    data: dict[str, Any]


def _begin(config: RunConfig, parent_run: str | None) -> _Run:
    facts = {"commit": code_commit()} | environment()
    data = training_data(open_cohort(place) for place in _places(config))
    digests = {f"data.{name}": digest for name, digest in data["cohorts"].items()}
    require_unchanged(config.name, _data_at_start(config.folder / FACTS, digests), digests)
    config.dump(config.folder / CONFIG)
    send_pending(config.out, config.tracking)
    run_id = open_run(config, facts | digests, parent_run)
    storage = config.workers.storage
    if storage is not None:
        for name in (CONFIG, FACTS):
            keep_file(storage, config.name, config.folder / name)
    return _Run(located(config), run_id, facts, data)


def _data_at_start(stored: Path, now: Mapping[str, str]) -> Mapping[str, str]:
    """The cohorts' digests when the training was started; the present ones where it had not come to tell them."""
    try:
        facts: dict[str, str] = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return now
    return {key: value for key, value in facts.items() if key.startswith("data.")}


def _finished(run: _Run, fitted: Callable[[], FitResult]) -> TrainResult:
    try:
        result = fitted()
    except BaseException:
        close_run(run.config, "FAILED")
        raise
    _write_result(run.config, result, run.facts, run.data)
    return TrainResult(run.config.folder, dict(result.best), close_run(run.config) or run.run_id)


def _check_size(config: RunConfig) -> None:
    workers = config.workers
    if not workers.autoscaling:
        require_cpus((workers.min_count or workers.count) * workers.cpus, "the training")


def build_stage(config: RunConfig, device: torch.device) -> Stage:
    """The stage of a config, with its cohorts open."""
    module, name = STAGES[config.stage]
    cohorts = [open_cohort(place) for place in _places(config)]
    return cast("Stage", getattr(import_module(module), name)(config.component, cohorts, device))


def _places(config: RunConfig) -> list[str]:
    data = getattr(config.component, "data", None)
    return [str(place) for place in getattr(data, "cohorts", [])]


def require_cohorts(config: RunConfig) -> None:
    """Refuse a stage that reads cohorts and was given none, before anything is started.

    Raises:
        UsageError: `no_cohorts`.
    """
    if hasattr(getattr(config.component, "data", None), "cohorts") and not _places(config):
        raise UsageError("data.cohorts is empty: say what to learn from, data.cohorts=[FOLDER]", code="no_cohorts")


def _check_folder(config: RunConfig, resume: bool) -> None:
    """Refuse to mix two trainings in one folder."""
    stored, storage = config.folder / CONFIG, config.workers.storage
    if not resume and (stored.is_file() or has_checkpoints(storage, config.name)):
        raise UsageError(
            f"{config.name} is a training already: --resume goes on with it, name=… starts another", code="run_exists"
        )
    if storage is not None:
        for name in (CONFIG, FACTS):
            bring_file(storage, config.name, config.folder / name)
    if not stored.is_file():
        return
    require_unchanged(config.name, load_config(config.stage, stored).decisive(), config.decisive())


def require_unchanged(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run, or a search, of other settings.

    Raises:
        UsageError: `config_changed`.
    """
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise UsageError(
            f"{name} was started with other values of {', '.join(changed)}: "
            "give the same ones, or start another run with name=…",
            code="config_changed",
        )


def _train_here(config: RunConfig, run_id: str | None, make: StageFactory, watch: Any) -> FitResult:
    log = RunLog(tracking_uri(config.tracking, config.out), run_id, config.tracking)

    def report(told: Report) -> None:
        log.send(told.row, told.pictures)
        if watch is not None and told.row:
            watch(told.row)

    device = torch.device("cuda" if config.workers.gpu else "cpu")
    seed_everything(config.training.seed)
    stage = make(config, device)
    try:
        return fit(stage, config.training, World.local(device, report), config.folder, resume=True)
    finally:
        log.unsent.keep(config.folder)


def _train_on_ray(
    config: RunConfig, run_id: str | None, make: StageFactory, callbacks: Sequence[UserCallback]
) -> FitResult:
    workers = config.workers
    trainer = TorchTrainer(
        work,
        train_loop_config={"order": Order(config, make, tracking_uri(config.tracking, config.out), run_id)},
        scaling_config=ScalingConfig(
            num_workers=(workers.min_count, workers.count) if workers.min_count else workers.count,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
            use_gpu=workers.gpu,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
        ),
        run_config=TrainRunConfig(
            name=config.name,
            storage_path=storage_uri(workers.storage or str(config.folder / "checkpoints")),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=CONTROLLER_FAILURES,
                max_preemption_failures=workers.max_preemptions,
            ),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="WARNING"),
            checkpoint_config=CheckpointConfig(num_to_keep=config.training.keep_checkpoints),
        ),
    )
    try:
        done = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise WorkFailedError(
            f"{config.name}: the workers failed: {_first_line(error)}; --resume goes on from the last checkpoint",
            code="training_failed",
        ) from error
    ended = cast("Ended", cast("Result", done).return_value)
    if ended.unsent is not None:
        ended.unsent.keep(config.folder)
    if ended.error is not None:
        raise ended.error
    assert ended.result is not None
    assert done.checkpoint is not None
    with done.checkpoint.as_directory() as stored:
        shutil.copytree(Path(stored) / BEST, config.folder / BEST, dirs_exist_ok=True)
    return ended.result


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _write_result(config: RunConfig, result: FitResult, facts: Mapping[str, str], data: Mapping[str, Any]) -> None:
    folder = config.folder
    for path in _files(folder / BEST):
        shutil.copy2(path, folder / path.name)
    write_curves(folder / "curves.csv", result.history)
    (folder / "metrics.json").write_text(
        json.dumps({"best_epoch": result.best_epoch, **result.best}, indent=2) + "\n", encoding="utf-8"
    )
    training = {
        "stage": config.stage,
        "name": config.name,
        "epochs": result.epochs,
        "seed": config.training.seed,
        "workers": config.workers.model_dump(mode="json", exclude_none=True),
        "facts": dict(facts),
        "data": dict(data),
        "preprocessing": preprocessing(config.component),
    }
    (folder / "training.json").write_text(json.dumps(training, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
