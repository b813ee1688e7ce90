"""An empty MLflow database, made once and copied: making one takes seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient


@cache
def _template() -> Path:
    path = Path(tempfile.mkdtemp(prefix="mlflow-template-")) / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def fresh_store(folder: Path) -> str:
    """A SQLite tracking URI in `folder`, with its tables in place."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


def isolated(folder: Path) -> dict[str, str]:
    """Environment variables that keep a test's MLflow and caches to itself."""
    return {"MLFLOW_TRACKING_URI": fresh_store(folder), "HEPALIGN_CACHE": str(folder / "cache"), "HEPALIGN_RELEASE": ""}


def environment(folder: Path) -> dict[str, str]:
    """The same on top of this process's environment."""
    return {**os.environ, **isolated(folder)}
