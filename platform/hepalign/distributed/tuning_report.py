"""What a search leaves: its trials as a table and a picture, and the winner as a config."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from hepalign.config import RunConfig


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


def write_report(folder: Path, winner: RunConfig, trials: Sequence[Trial], best: Trial) -> Path:
    """Write `trials.csv`, `report.png` and `best.yaml`; returns the last."""
    keys = list(best.settings)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "score", "epochs", "error", *keys])
        for trial in sorted(trials, key=lambda found: found.score):
            settings = [trial.settings.get(key) for key in keys]
            writer.writerow([trial.name, trial.score, trial.epochs, trial.error, *settings])
    _draw(folder / "report.png", [trial for trial in trials if math.isfinite(trial.score)], keys, best)
    return _write_winner(folder, winner, best, len(trials))


def importance(trials: Sequence[Trial], keys: Sequence[str]) -> dict[str, float]:
    """How much each numeric setting moves the score: |Spearman's rho| over the trials; 0 where it cannot be told."""
    found = {}
    for key in keys:
        values = [value for trial in trials if isinstance(value := trial.settings.get(key), int | float)]
        numeric = len(values) == len(trials)
        varied = numeric and len(set(values)) > 1 and len({trial.score for trial in trials}) > 1
        rho = float(spearmanr(values, [trial.score for trial in trials]).statistic) if varied else 0.0
        found[key] = abs(rho) if math.isfinite(rho) else 0.0
    return found


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


def _draw(path: Path, trials: Sequence[Trial], keys: Sequence[str], best: Trial) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    course, parallel, bars = figure.subplots(1, 3)
    scores = [trial.score for trial in trials]
    course.plot(scores, "o", color="0.6", label="trial")
    course.plot(np.minimum.accumulate(scores), label="best so far")
    course.set(xlabel="trial", ylabel="score (smaller is better)", title="Course")
    course.legend()
    _parallel(parallel, trials, keys, best)
    found = importance(trials, keys)
    bars.barh(list(found), list(found.values()))
    bars.set(xlim=(0, 1), xlabel="|Spearman's ρ| with the score", title="Importance")
    figure.savefig(path, dpi=110)


def _parallel(axes: Axes, trials: Sequence[Trial], keys: Sequence[str], best: Trial) -> None:
    """Parallel coordinates: each setting by its rank, the score as colour, the winner in red."""
    columns = [[str(trial.settings.get(key)) for trial in trials] for key in keys]
    numbers = [[trial.settings.get(key) for trial in trials] for key in keys]
    scaled = [_unit(column if all(isinstance(v, int | float) for v in column) else text) for column, text in
              zip(numbers, columns, strict=True)]  # fmt: skip
    shades = _unit([trial.score for trial in trials])
    for place, trial in enumerate(trials):
        heights = [column[place] for column in scaled]
        colour = "red" if trial is best else mpl.colormaps["viridis"](shades[place])
        axes.plot(range(len(keys)), heights, color=colour, linewidth=2 if trial is best else 1)
    axes.set_xticks(range(len(keys)), [key.rpartition(".")[2] for key in keys], rotation=30)
    axes.set(yticks=[0, 1], yticklabels=["lowest", "highest"], title="Settings (red: the best)")


def _unit(values: Sequence[Any]) -> list[float]:
    """Values by rank, from 0 to 1."""
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] / max(1, len(order) - 1) for value in values]
