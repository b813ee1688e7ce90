"""What a search says of its settings."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hepalign.config import Distribution, load_config
from hepalign.distributed.tuning_report import Trial, importance, write_report

ROOT = Path(__file__).parents[3]
SPACE = {
    "losses.hole": Distribution(log_uniform=(1.0, 36.0)),
    "losses.style": Distribution(log_uniform=(12.0, 1200.0)),
    "kind": Distribution(choice=["pconv-unet", "conv-unet"]),
}


def trials(count: int = 30) -> list[Trial]:
    """The score is best for a hole weight in the middle (6), and knows nothing of the other settings."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(count):
        hole = float(np.exp(rng.uniform(0, np.log(36))))
        style = float(np.exp(rng.uniform(np.log(12), np.log(1200))))
        kind = str(rng.choice(["pconv-unet", "conv-unet"]))
        settings = {"losses.hole": hole, "losses.style": style, "kind": kind}
        found.append(Trial(f"t{number}", settings, 20 + 5 * math.log(hole / 6) ** 2, 3, ""))
    return found


def test_a_setting_with_its_best_in_the_middle_is_found_important() -> None:
    found = importance(trials(), SPACE)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["losses.hole"] > 0.8


def test_two_trials_tell_nothing() -> None:
    assert importance(trials(2), SPACE) == {}


def test_the_report_holds_every_trial_and_a_config_of_the_best(tmp_path: Path) -> None:
    run = [*trials(5), Trial("lost", {"losses.hole": 1.0, "losses.style": 12.0, "kind": "conv-unet"}, math.inf, 0, "x")]
    best = min(run, key=lambda trial: trial.score)
    base = load_config("inpainting", ROOT / "jobs/configs/tune-inpainting.yaml")
    written = write_report(tmp_path, base, run, best, SPACE)
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["trial"] == best.name
    assert rows[-1]["error"] == "x"
    assert len(rows) == 6
    assert set(json.loads((tmp_path / "importance.json").read_text(encoding="utf-8"))) == set(SPACE)
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    winner = load_config("inpainting", written)
    assert winner.search is None
