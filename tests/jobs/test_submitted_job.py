"""A real job on a real local head: the code that runs is the code that was submitted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_store import isolated
from ray_head import Head, ray_head
from small_cohort import small_cohort

ROOT = Path(__file__).parents[2]
WHERE = "import ray, hepalign; ray.init(); print('driver', hepalign.__file__); print('worker', ray.get(ray.remote(lambda: __import__('hepalign').__file__).remote()))"  # noqa: E501
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(**isolated(tmp_path_factory.mktemp("mlflow"))) as started:
        yield started


def guide(page: str, place: Path) -> list[str]:
    """The words after `--` of a how-to's `ray job submit` line, for a copy in `place`."""
    lines = (ROOT / "docs/how-to" / page).read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("ray job submit"))
    return shlex.split(line.partition(" -- ")[2].replace("$PWD", str(place)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    small_cohort(folder / "cohorts/train")
    return folder


@pytest.fixture(scope="module")
def trained(head: Head, place: Path) -> Path:
    done = head.submit(ROOT, *guide("submit-a-job.md", place))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place / "runs/train-1"


def test_the_guides_training_runs_the_submitted_code(trained: Path) -> None:
    assert (trained / "inpainting.safetensors").is_file()
    told = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert told["facts"]["code"].startswith("_ray_pkg_")
    assert told["workers"]["count"] == 2


@pytest.mark.slow
def test_the_guides_resume_finds_the_finished_training_by_its_name(head: Head, place: Path, trained: Path) -> None:
    before = (trained / "inpainting.safetensors").read_bytes()
    done = head.submit(ROOT, *guide("resume.md", place))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (trained / "inpainting.safetensors").read_bytes() == before


def test_driver_and_workers_import_the_submitted_library(head: Head) -> None:
    done = head.submit(ROOT, "python", "-c", WHERE)
    places = [line for line in done.stdout.splitlines() if line.startswith(("driver", "worker"))]
    assert len(places) == 2, done.stdout[-3000:] + done.stderr[-3000:]
    for place in places:
        assert "_ray_pkg_" in place
        assert str(ROOT) not in place


def test_a_jobs_words_that_are_off_end_it_with_one_line(head: Head) -> None:
    done = head.submit(
        ROOT, "python", "jobs/train.py", "inpainting", "--config", "jobs/configs/smoke-inpainting.yaml",
        "losses.stile=60",
    )  # fmt: skip
    assert done.returncode != 0
    assert "error[config_unknown_key]: losses.stile" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
