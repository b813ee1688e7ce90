"""The recipes of the starter release and of the trained ablations, whole, in a tiny setting."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hepalign.cli import reproduce as recipe
from hepalign.config import RunConfig, load_config

TINY = {
    "synthesis": ["data.patch=[32,32,32]", "net.width=8", "net.blocks=1", "discriminator.width=8"],
    "inpainting": ["data.patch=[32,32,32]", "net.widths=[4,8,8,8]"],
    "registration": ["data.shape=[48,48,48]", "data.spacing_mm=7.0", "net.encoder_channels=8", "net.level_channels=16"],
}


def tiny(stage: str, path: Path, words: list[str]) -> RunConfig:
    """The configuration with settings that train for a second or two."""
    short = ["training.epochs=1", "training.steps_per_epoch=2", "workers.count=0"]
    return load_config(stage, path, [*words, *TINY[stage], *short])


@pytest.mark.slow
def test_the_ablations_are_trained_and_named_as_evaluate_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("ablations", "jobs/ablations.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    monkeypatch.setattr(job, "load_config", tiny)
    monkeypatch.setattr(recipe, "SHAPE", (48, 48, 48))
    monkeypatch.setattr(recipe, "SPACING_MM", 7.0)
    monkeypatch.setattr(recipe, "PHANTOMS", (4, 1))
    monkeypatch.setattr(recipe, "RANDOMISED", (1, 11))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("HEPALIGN_REAL_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["ablations.py", "conv", "pconv-no-prior", "--out", str(tmp_path)])

    assert job.main() == 0
    words = [line.removeprefix("--ablate ") for line in capsys.readouterr().out.splitlines() if "--ablate" in line]
    assert [word.partition("=")[0] for word in words] == ["conv", "pconv-no-prior"]
    kinds = []
    for word in words:
        stage, _, folder = word.partition("=")[2].partition(":")
        described = json.loads((Path(folder) / f"{stage}.json").read_text(encoding="utf-8"))
        assert described["config"]["prior"] is False
        kinds.append(described["kind"])
    assert len(set(kinds)) == 2


@pytest.mark.slow
def test_the_recipe_runs_to_the_gate_and_says_without_real_data_that_it_learns_from_phantoms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gated: dict[str, Any] = {}
    monkeypatch.setattr(recipe, "load_config", tiny)
    monkeypatch.setattr(recipe, "promote", lambda release, **words: gated.update(words, release=release))
    monkeypatch.setattr(recipe, "SHAPE", (48, 48, 48))
    monkeypatch.setattr(recipe, "SPACING_MM", 7.0)
    for name, value in {"PHANTOMS": (4, 1), "RANDOMISED": (1, 11), "TEST_PHANTOMS": (1, 21)}.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("HEPALIGN_REAL_DATA", raising=False)

    release = recipe.reproduce(tmp_path)

    assert "phantoms alone" in capsys.readouterr().err
    assert gated["release"] == str(release)
    results = json.loads((gated["evaluation"] / "results.json").read_text(encoding="utf-8"))
    methods = {row["method"] for row in results["table"]}
    assert {"identity", "greedy-wncc", "ants-syn", "proposed-fast", "proposed-refine"} <= methods
    trained_on = json.loads((release / "trainings.json").read_text(encoding="utf-8"))
    assert set(trained_on) == {"synthesis", "inpainting", "registration"}
