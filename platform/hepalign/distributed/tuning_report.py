"""What a search leaves: its trials as a table and a picture, and the winner as a config."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator

from hepalign.config import Distribution, RunConfig

# Fewer different scores tell nothing of what moves them.
FEWEST_SCORES = 3


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        name: of its folder.
        settings: by dotted key.
        score: of its best epoch, smaller is better; infinite when it has none.
        epochs: how many it reported before it ended or was stopped.
        error: why it failed, or empty.
    """

    name: str
    settings: Mapping[str, Any]
    score: float
    epochs: int
    error: str


def write_report(
    folder: Path, winner: RunConfig, trials: Sequence[Trial], best: Trial, space: Mapping[str, Distribution]
) -> Path:
    """Write `trials.csv`, `report.png`, `importance.json` and `best.yaml`; returns the last."""
    keys = list(space)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "score", "epochs", "error", *keys])
        for trial in sorted(trials, key=lambda found: found.score):
            settings = [trial.settings.get(key) for key in keys]
            writer.writerow([trial.name, trial.score, trial.epochs, trial.error, *settings])
    scored = [trial for trial in trials if math.isfinite(trial.score)]
    found = importance(scored, space)
    (folder / "importance.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _draw(folder / "report.png", scored, keys, best, found)
    return _write_winner(folder, winner, best, len(trials))


def importance(trials: Sequence[Trial], domains: Mapping[str, Distribution]) -> dict[str, float]:
    """Each setting's share of the score's variance (fANOVA), all together 1; empty where it cannot be told.

    A rank correlation would give 0 to a weight whose best value lies in the middle.
    """
    study = optuna.create_study()
    for trial in trials:
        values = {key: trial.settings[key] for key in domains}
        distributions = {key: _optuna_domain(domain) for key, domain in domains.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=trial.score))
    if len({trial.score for trial in trials}) < FEWEST_SCORES:
        return {}
    found = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(found.get(key, 0.0)) for key in domains}


def _optuna_domain(domain: Distribution) -> BaseDistribution:
    if domain.log_uniform is not None:
        return FloatDistribution(*domain.log_uniform, log=True)
    if domain.uniform is not None:
        return FloatDistribution(*domain.uniform)
    if domain.integers is not None:
        return IntDistribution(*domain.integers)
    return CategoricalDistribution(domain.choice or [])


def _write_winner(folder: Path, winner: RunConfig, best: Trial, count: int) -> Path:
    path = folder / "best.yaml"
    flat = winner.flat() | {"name": f"{winner.name}-best"}
    flat.pop("search", None)
    header = (
        f"# Command: hepalign train {winner.stage} --config {path.name}\n"
        f"# The best of {count} trials ({best.name}).\n"
        f"# Expected time: as one whole training of this length ({winner.training.epochs} epochs).\n"
        f"# Expected score: {best.score:.6g} (the validation metric, smaller is better)\n"
    )
    path.write_text(header + OmegaConf.to_yaml(OmegaConf.create(flat)), encoding="utf-8")
    return path


def _draw(path: Path, trials: Sequence[Trial], keys: Sequence[str], best: Trial, found: Mapping[str, float]) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    course, parallel, bars = figure.subplots(1, 3)
    scores = [trial.score for trial in trials]
    course.plot(scores, "o", color="0.6", label="trial")
    course.plot(np.minimum.accumulate(scores), label="best so far")
    course.set(xlabel="trial", ylabel="score (smaller is better)", title="Course")
    course.legend()
    _parallel(parallel, trials, keys, best)
    bars.barh(list(found), list(found.values()))
    bars.set(xlim=(0, 1), xlabel="share of the score's variance (fANOVA)", title="Importance")
    figure.savefig(path, dpi=110)


def _parallel(axes: Axes, trials: Sequence[Trial], keys: Sequence[str], best: Trial) -> None:
    """Parallel coordinates: each setting by its rank, the score as colour, the winner in red."""
    columns = [_comparable([trial.settings.get(key) for trial in trials]) for key in keys]
    scaled = [_unit(column) for column in columns]
    scores = np.asarray([trial.score for trial in trials])
    scale = ScalarMappable(Normalize(scores.min(), scores.max()), "viridis")
    colours = scale.to_rgba(scores)
    for place, trial in enumerate(trials):
        heights = [column[place] for column in scaled]
        won = trial is best
        axes.plot(range(len(keys)), heights, color="red" if won else colours[place], linewidth=2 if won else 1)
    ends = [f"{_short(min(column))} to {_short(max(column))}" for column in columns]
    names = [f"{key.rpartition('.')[2]}\n{end}" for key, end in zip(keys, ends, strict=True)]
    axes.set_xticks(range(len(keys)), names, rotation=30)
    axes.set(yticks=[0, 1], yticklabels=["lowest", "highest"], title="Settings (red: the best)")
    axes.figure.colorbar(scale, ax=axes, label="score")


def _comparable(values: Sequence[Any]) -> list[Any]:
    """The values themselves where all are numbers, else as words."""
    return list(values) if all(isinstance(value, int | float) for value in values) else [str(v) for v in values]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _unit(values: Sequence[Any]) -> list[float]:
    """Values by rank, from 0 to 1."""
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] / max(1, len(order) - 1) for value in values]
