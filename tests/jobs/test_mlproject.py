"""MLflow's own way in: `mlflow run`, and a release loaded as a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow_store import environment, isolated
from small_cohort import small_cohort
from small_release import small_release

from hepalign.tracking.registry import client
from hepalign.tracking.releases import register_release

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_mlflow_run_trains_and_nests_the_run(tmp_path: Path) -> None:
    cohort = small_cohort(tmp_path / "cohort")
    values = environment(tmp_path / "mlflow") | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    overrides = f"data.cohorts=[{cohort}] out={tmp_path / 'runs'} workers.count=0 losses.style=60"
    command = [
        BIN / "mlflow", "run", "mlflow", "-e", "train", "--env-manager", "local", "-P", "stage=inpainting",
        "-P", "config=jobs/configs/smoke-inpainting.yaml", "-P", f"overrides={overrides}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/smoke-inpainting/inpainting.safetensors").is_file()
    api = client(values["MLFLOW_TRACKING_URI"])
    runs = api.search_runs([experiment.experiment_id for experiment in api.search_experiments()])
    ours = [run for run in runs if run.data.params.get("losses.style") == "60.0"]
    assert len(ours) == 1
    assert ours[0].data.tags["mlflow.parentRunId"] in {run.info.run_id for run in runs}


def test_every_entry_point_calls_a_job_that_exists() -> None:
    project = yaml.safe_load((ROOT / "mlflow/MLproject").read_text(encoding="utf-8"))
    for name, entry in project["entry_points"].items():
        job = re.search(r"python (jobs/\w+\.py)", entry["command"])
        assert job, name
        assert (ROOT / job[1]).is_file(), name
        assert entry["command"].startswith("cd .. && ")
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"]), name


def test_mlflow_loads_a_release_with_pickle_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an MLflow model from code: nothing is unpickled, and a missing case is one readable error."""
    for name, value in isolated(tmp_path / "mlflow").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    version = register_release(small_release(tmp_path))
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    model = mlflow.pyfunc.load_model(f"models:/hepalign/{version}")
    inner = model.unwrap_python_model()
    assert set(inner.bundle.networks) == {"synthesis", "inpainting", "registration"}
    assert not list(Path(tmp_path).rglob("*.pkl"))
    assert [column.name for column in model.metadata.get_input_schema()] == ["cohort", "case", "out"]
    with pytest.raises(Exception, match="no cohort here"):
        model.predict(pd.DataFrame({"cohort": [str(tmp_path)], "case": ["x"]}))
