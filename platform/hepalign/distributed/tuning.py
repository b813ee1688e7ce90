"""Searching a stage's settings: Optuna proposes, ASHA stops, Ray Tune runs the trials."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune as ray_tune
from ray.train import Checkpoint
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from hepalign.config import Distribution, RunConfig, SearchConfig, load_config, located, with_settings
from hepalign.distributed.cluster import ray_session
from hepalign.distributed.tuning_report import Trial, write_report
from hepalign.distributed.worker import StageFactory
from hepalign.distributed.workers import build_stage, require_cohorts, require_unchanged, train
from hepalign.errors import UsageError, WorkFailedError
from hepalign.tracking.provenance import code_commit, environment
from hepalign.tracking.runs import close_run, open_run, read_curves
from hepalign.training.loop import SCORE

# A trial that only waits for its workers needs next to nothing, but Tune gives it a whole CPU unless told.
DRIVER_CPUS = 0.05


@dataclass(frozen=True)
class TuneResult:
    """A finished search.

    Args:
        folder: `trials.csv`, `report.png`, `best.yaml` and the trials' own folders.
        best: the winner's settings by dotted key.
        score: its validation metric, turned so that smaller is better.
        config: the winner as a YAML that trains at once.
    """

    folder: Path
    best: dict[str, Any]
    score: float
    config: Path


def tune(config: RunConfig, resume: bool = False, *, build: StageFactory | None = None) -> TuneResult:
    """Search `config.search.space`; every trial is a training of `config` with other values under the dotted keys.

    The score is the stage's validation metric, which does not depend on the weights that are searched.

    Raises:
        UsageError: `no_search`, `no_cohorts`, `config_unknown_key` for a key that the stage does not have,
            `too_few_cpus`, `run_exists` without `resume`, `config_changed` with it.
        WorkFailedError: `all_trials_failed`.
    """
    search = config.search
    if search is None:
        raise UsageError("the config has no `search` section: see jobs/configs/tune-inpainting.yaml", code="no_search")
    require_cohorts(config)
    base = located(config)
    for key, values in search.space.items():
        with_settings(base, {key: _any_value(values)})
    folder = base.folder
    experiment = folder / "tune"
    if experiment.exists() and not resume:
        raise UsageError(
            f"{folder.name} holds a search already: --resume goes on with it, name=… starts another", code="run_exists"
        )
    stored = folder / "config.yaml"
    if experiment.exists():
        require_unchanged(folder.name, _settings(load_config(base.stage, stored)), _settings(base))
    base.dump(stored)
    run_id = open_run(base, {"commit": code_commit()} | environment())
    # Tune would move each trial into a folder of its own, where relative paths lead nowhere.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    with ray_session():
        tuner = _tuner(base, search, build or build_stage, run_id, resume)
        results = tuner.fit()
    trials = [_trial(results[number]) for number in range(len(results))]
    _close_trials(base, trials)
    scored = [trial for trial in trials if math.isfinite(trial.score)]
    if not scored:
        close_run(base, "FAILED")
        first = next((trial.error for trial in trials if trial.error), "none reported a score")
        raise WorkFailedError(f"all {len(trials)} trials failed: {first}", code="all_trials_failed")
    best = min(scored, key=lambda trial: trial.score)
    written = write_report(folder, with_settings(base, best.settings), trials, best, search.space)
    close_run(base)
    return TuneResult(folder, dict(best.settings), best.score, written)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What a resumed search may not change: Tune goes on with the trials that it has drawn."""
    return {key: value for key, value in config.flat().items() if key not in {"out", "workers", "tracking"}}


def _tuner(
    base: RunConfig, search: SearchConfig, make: StageFactory, run_id: str | None, resume: bool
) -> ray_tune.Tuner:
    concurrent = _concurrent(base, search)
    trainable = ray_tune.with_resources(_trainable(base, make, run_id), {"cpu": _driver_cpus(base)})
    storage, name = str(base.folder), "tune"
    path = f"{storage}/{name}"
    if resume and ray_tune.Tuner.can_restore(path):
        return ray_tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
    searcher = OptunaSearch(
        space={key: _domain(values) for key, values in search.space.items()},
        metric=SCORE,
        mode="min",
        points_to_evaluate=search.start or None,
        seed=search.seed,
    )
    scheduler = ASHAScheduler(
        time_attr="epochs",
        metric=SCORE,
        mode="min",
        max_t=base.training.epochs,
        grace_period=min(search.grace_epochs, base.training.epochs),
        reduction_factor=search.reduction,
    )
    return ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=search.trials,
            max_concurrent_trials=concurrent,
            time_budget_s=search.budget_s,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=ray_tune.RunConfig(name=name, storage_path=storage, verbose=0),
    )


def _concurrent(base: RunConfig, search: SearchConfig) -> int:
    """How many trials the cluster holds at a time; none is refused, for Tune would wait for ever."""
    each = _driver_cpus(base) + base.workers.count * base.workers.cpus
    there = float(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    fits = int((there + 1e-6) // each)
    if fits == 0 and not base.workers.autoscaling:
        raise UsageError(
            f"a trial needs {each:g} CPUs and the cluster has {there:g}: lower workers.count or workers.cpus "
            f"({DRIVER_CPUS:g} CPU of each trial goes to its driver)",
            code="too_few_cpus",
        )
    return min(search.concurrent or search.trials, max(1, fits))


def _driver_cpus(base: RunConfig) -> float:
    return DRIVER_CPUS if base.workers.count else base.workers.cpus


def _trainable(base: RunConfig, make: StageFactory, run_id: str | None) -> Callable[[dict[str, Any]], None]:
    epochs = base.training.epochs

    def trial(settings: dict[str, Any]) -> None:
        name = str(ray_tune.get_context().get_trial_id())
        config = with_settings(base, settings).model_copy(
            update={"name": name, "out": base.folder / "trials", "search": None}
        )
        on_ray = base.workers.count > 0
        train(
            config,
            resume=True,
            build=make,
            parent_run=run_id,
            watch=lambda row: _tell_tune(row) if _before_last(row, epochs) else None,
            callbacks=[_TellTune(epochs)] if on_ray else (),
        )
        # ASHA ends a trial at its last epoch's report: it comes once the trial's files and its run are complete
        last = read_curves(config.folder / "curves.csv")[-1]
        if not _before_last(last, epochs):
            _tell_tune(last)

    return trial


def _before_last(row: Mapping[str, float], epochs: int) -> bool:
    return row["epoch"] + 1 < epochs


def _tell_tune(row: Mapping[str, float]) -> None:
    if SCORE in row:
        ray_tune.report(_told(row))


def _told(row: Mapping[str, float]) -> dict[str, float]:
    score = row[SCORE] if math.isfinite(row[SCORE]) else math.inf
    return {**row, SCORE: score, "epochs": row["epoch"] + 1}


class _TellTune(TuneReportCallback):
    """Hands the workers' scored rows to Tune, but for the last epoch's."""

    def __init__(self, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.epochs = epochs

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        if SCORE in metrics[0] and _before_last(metrics[0], self.epochs):
            super().after_report(run_context, [_told(metrics[0])], None)


def _domain(values: Distribution) -> Any:
    if values.log_uniform is not None:
        return ray_tune.loguniform(*values.log_uniform)
    if values.uniform is not None:
        return ray_tune.uniform(*values.uniform)
    if values.integers is not None:
        low, high = values.integers
        return ray_tune.randint(low, high + 1)
    return ray_tune.choice(cast("list[Any]", values.choice))


def _any_value(values: Distribution) -> Any:
    """One of the values, to try the key with."""
    pair = values.log_uniform or values.uniform or values.integers
    return pair[0] if pair is not None else cast("list[Any]", values.choice)[0]


def _trial(result: Any) -> Trial:
    """A trial's outcome; its best epoch counts, as it does in a training."""
    frame = result.metrics_dataframe
    scores = list(frame[SCORE]) if frame is not None and SCORE in frame else []
    error = str(result.error).strip().splitlines()[-1] if result.error else ""
    return Trial(
        name=Path(result.path).name,
        settings=dict(result.config or {}),
        score=min((score for score in scores if math.isfinite(score)), default=math.inf),
        epochs=len(scores),
        error=error,
    )


def _close_trials(base: RunConfig, trials: list[Trial]) -> None:
    """End the runs of the trials that ASHA stopped: their own processes could not."""
    for trial in trials:
        folder = base.folder / "trials" / trial.name
        if (folder / "facts.json").is_file() and not (folder / "metrics.json").is_file():
            stopped = base.model_copy(update={"name": trial.name, "out": base.folder / "trials", "search": None})
            close_run(stopped, "FAILED" if trial.error else "KILLED")
