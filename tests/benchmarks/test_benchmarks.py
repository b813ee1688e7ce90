"""Every benchmark still runs on the code it measures: tiny, and its figures are not judged."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

TINY = {
    "compose": ["--shape", "32,32,24", "--rounds", "1"],
    "floor": ["--size", "16"],
    "guide": ["--shape", "48,48,32", "--cases", "1", "--rounds", "1", "--peers", "greedy-nmi"],
    "losses": ["--size", "24"],
    "partial_conv": ["--channels", "4", "--size", "32"],
    "patch_queue": ["--size", "48", "--patch", "16", "--patches", "4"],
    "precision": ["--shape", "48,48,32", "--rounds", "1"],
    "voxelmorph_network": ["--shape", "32", "32", "32", "--rounds", "1"],
}
# These start services and trainings, or have one size.
LONG = {
    "guide_http": ["--shape", "48,48,32", "--rounds", "1"],
    "loader_wait": [],
    "phantom": ["--seeds", "1"],
    "quality": ["--cases", "1"],
    "ray_step": ["--steps", "10", "--rounds", "1", "--size", "32"],
    "scaling": ["--rounds", "1"],
    "starts": ["--rounds", "1"],
}
# What they share, the table that they fill, and a soak that tests/serve/test_siege.py runs.
NO_FIGURES = {"load", "load_users", "run", "scene", "timing"}


def test_each_benchmark_is_run_by_a_test(root: Path) -> None:
    names = {path.stem for path in (root / "benchmarks").glob("*.py")}
    assert names == TINY.keys() | LONG.keys() | NO_FIGURES


@pytest.mark.parametrize("name", sorted(TINY))
def test_benchmark_prints_figures(root: Path, name: str) -> None:
    _check(root, name, TINY[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(LONG))
def test_long_benchmark_prints_figures(root: Path, name: str) -> None:
    _check(root, name, LONG[name])


def _check(root: Path, name: str, words: list[str]) -> None:
    call = [sys.executable, str(root / "benchmarks" / f"{name}.py"), *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines
    assert all(line["figure"] and math.isfinite(line["value"]) for line in lines)
