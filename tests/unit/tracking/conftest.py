from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_store import isolated


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store and caches of this test's own; its URI."""
    values = isolated(tmp_path / "mlflow")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values["MLFLOW_TRACKING_URI"]
