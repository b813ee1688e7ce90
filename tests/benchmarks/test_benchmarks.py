"""Every benchmark still runs on the code it measures: tiny, and its figures are not judged."""

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What a script may change for itself is put back: it runs in this process, which has its libraries loaded."""
    monkeypatch.setenv("HEPALIGN_CACHE", os.environ["HEPALIGN_CACHE"])
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield monkeypatch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", sorted(TINY))
def test_benchmark_prints_figures(
    root: Path, name: str, undone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = root / "benchmarks" / f"{name}.py"
    undone.syspath_prepend(script.parent)
    undone.setattr(sys, "argv", [str(script), *TINY[name]])
    runpy.run_path(str(script), run_name="__main__")
    _check_figures(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(LONG))
def test_long_benchmark_prints_figures(root: Path, name: str) -> None:
    _check(root, name, LONG[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_verdicts_on_an_mr_are_measured_too(root: Path) -> None:
    _check(root, "quality", ["--cases", "1", "--modality", "mr"])


def _check(root: Path, name: str, words: list[str]) -> None:
    call = [sys.executable, str(root / "benchmarks" / f"{name}.py"), *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _check_figures(done.stdout)


def _check_figures(printed: str) -> None:
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert lines
    assert all(line["figure"] and math.isfinite(line["value"]) for line in lines)
