"""Every YAML in jobs/configs loads for its stage, and says its command, time and score."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hepalign.config import load_config, with_settings
from hepalign.evaluation.variants import TRAINED_ABLATIONS
from hepalign.tracking.gate import read_policy

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_states_command_time_and_score(path: Path) -> None:
    header = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("# ")
    )
    command = re.search(r"^# Command: hepalign (train|tune) (\w+) --config (\S+)", header, re.MULTILINE)
    assert command, "no command in the header"
    assert ROOT / command[3] == path
    assert re.search(r"^# Expected time: \S", header, re.MULTILINE)
    assert re.search(r"^# Expected score: \S", header, re.MULTILINE)
    config = load_config(command[2], path)
    assert (config.search is not None) == (command[1] == "tune")
    for start in config.search.start if config.search else []:
        with_settings(config, start)


@pytest.mark.parametrize("name", TRAINED_ABLATIONS)
def test_a_trained_ablation_differs_from_the_release_in_what_it_says(name: str) -> None:
    stage, changes = TRAINED_ABLATIONS[name]
    path = ROOT / "jobs/configs" / f"{stage}.yaml"
    of_release, changed = (load_config(stage, path, words).model_dump() for words in ([], changes.split()))
    assert changed != of_release


def test_the_three_stages_have_demo_and_smoke_configs() -> None:
    names = {path.stem for path in CONFIGS}
    for stage in ("synthesis", "inpainting", "registration"):
        assert {f"demo-{stage}", f"smoke-{stage}"} <= names


def test_the_inpainting_search_starts_at_the_papers_weights() -> None:
    config = load_config("inpainting", ROOT / "jobs/configs/tune-inpainting.yaml")
    assert config.search is not None
    assert config.search.start[0] == {
        "losses.hole": 6.0,
        "losses.perceptual": 0.05,
        "losses.style": 120.0,
        "losses.tv": 0.1,
    }


@pytest.mark.parametrize("name", ["promotion.yaml", "demo-promotion.yaml"])
def test_the_promotion_policies_are_sound(name: str) -> None:
    assert read_policy(ROOT / "mlflow" / name).thresholds


def test_jobs_are_thin() -> None:
    """Classes and functions defined in a job would be other classes on a worker."""
    for path in (ROOT / "jobs").glob("*.py"):
        assert re.findall(r"^(?:def|class) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE) == ["main"], (
            path.name
        )
