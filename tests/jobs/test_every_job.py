"""Every job, submitted to a real head as an ML engineer does it: cohort, search, evaluation, promotion, batch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_store import isolated
from ray_head import Head, ray_head
from small_cohort import small_cohort
from small_release import small_release

from hepalign.config import load_config
from hepalign.tracking.promotion import history
from hepalign.tracking.resolution import resolve_release

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
POLICY = (
    "split: test\nmin_cases: 1\nthresholds:\n  - {pair: pCT-iCT, structure: field, metric: seconds, at_most: 600}\n"
)
TINY = ("data.patch=[16,16,16]", "data.spacing_mm=10", "data.samples_per_case=1", "net.widths=[2,4]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return isolated(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def head(store: dict[str, str]) -> Iterator[Head]:
    with ray_head(**store) as started:
        yield started


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort(tmp_path_factory.mktemp("cohort"))


def submitted(head: Head, *words: str) -> str:
    done = head.submit(ROOT, "python", *words)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_prepare_makes_a_cohort(head: Head, tmp_path: Path) -> None:
    words = ["--cases", "1", "--seed", "7", "--shape", "32,32,32", "--spacing", "9"]
    submitted(head, "jobs/prepare.py", "phantom", "--out", str(tmp_path / "made"), *words)
    assert len(json.loads((tmp_path / "made/manifest.json").read_text(encoding="utf-8"))["cases"]) == 1


def test_tune_writes_a_winner_that_trains_at_once(head: Head, cohort: Path, tmp_path: Path) -> None:
    submitted(
        head, "jobs/tune.py", "inpainting", "--config", "jobs/configs/tune-inpainting.yaml", *TINY,
        f"data.cohorts=[{cohort}]", f"out={tmp_path}", "search.trials=3", "training.epochs=2",
        "training.steps_per_epoch=1", "workers.cpus=0.9",
    )  # fmt: skip
    folder = tmp_path / "tune-inpainting"
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3
    winner = load_config("inpainting", folder / "best.yaml")
    submitted(head, "jobs/train.py", "inpainting", "--config", str(folder / "best.yaml"), f"out={tmp_path / 'again'}")
    metrics = json.loads((tmp_path / "again" / winner.name / "metrics.json").read_text(encoding="utf-8"))
    first = min(float(row["score"]) for row in csv.DictReader((folder / "trials.csv").open(encoding="utf-8")))
    assert metrics["score"] == pytest.approx(first)


def test_evaluate_promote_and_batch(
    head: Head, store: dict[str, str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = small_release(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY, encoding="utf-8")
    report = tmp_path / "evaluation"
    submitted(
        head, "jobs/evaluate.py", str(cohort), "--release", str(release), "--out", str(report), "--baselines", "",
        "--workers", "1",
    )  # fmt: skip
    assert (report / "report.html").is_file()
    submitted(
        head, "jobs/promote.py", str(release), "--report", str(report), "--policy", str(tmp_path / "policy.yaml"),
        "--reason", "by a job",
    )  # fmt: skip
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    assert [row["reason"] for row in history()] == ["by a job"]
    assert resolve_release("models:/hepalign@champion")

    out = tmp_path / "scored"
    submitted(
        head, "jobs/batch.py", str(cohort), "--release", "models:/hepalign@champion", "--out", str(out),
        "--workers", "2",
    )  # fmt: skip
    with (out / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {row["status"] for row in rows} <= {"accept", "review", "reject"}
    assert all((out / row["case"] / "result.json").is_file() for row in rows)


def test_mlflow_itself_scores_a_case_with_pickle_off(
    store: dict[str, str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    from hepalign.cases.cohort import open_cohort
    from hepalign.tracking.releases import register_release

    for name, value in {**store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}.items():
        monkeypatch.setenv(name, value)
    version = register_release(small_release(tmp_path, 5))
    mlflow.set_tracking_uri(store["MLFLOW_TRACKING_URI"])
    model = mlflow.pyfunc.load_model(f"models:/hepalign/{version}")
    case = open_cohort(str(cohort)).cases()[0].id
    found = model.predict(pd.DataFrame({"cohort": [str(cohort)], "case": [case], "out": [str(tmp_path / "out")]}))
    assert list(found["case"]) == [case]
    assert set(found["status"]) <= {"accept", "review", "reject"}
    assert (tmp_path / "out/result.json").is_file()
