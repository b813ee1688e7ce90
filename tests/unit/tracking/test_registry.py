"""Reaching MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hepalign.tracking.registry import client

FIRST = (
    "import sys; from hepalign.tracking.registry import client, ensure_experiment; "
    "ensure_experiment(client(sys.argv[1]), sys.argv[2])"
)


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    """MLflow's own start would end all but one of them with an error of its migrations."""
    uri = f"sqlite:///{tmp_path / 'runs/mlflow.db'}"
    started = [subprocess.Popen([sys.executable, "-c", FIRST, uri, f"e{number}"]) for number in range(3)]
    assert [process.wait(240) for process in started] == [0, 0, 0]
    assert {found.name for found in client(uri).search_experiments()} == {"Default", "e0", "e1", "e2"}
