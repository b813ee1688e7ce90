"""Reaching MLflow."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from hepalign.tracking.registry import client, ensure_experiment


def _first(uri: str, name: str) -> None:
    ensure_experiment(client(uri), name)


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    """MLflow's own start would end all but one of them with an error of its migrations."""
    uri = f"sqlite:///{tmp_path / 'runs/mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_first, args=(uri, f"e{number}")) for number in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert {found.name for found in client(uri).search_experiments()} == {"Default", "e0", "e1", "e2"}
