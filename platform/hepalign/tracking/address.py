"""Where MLflow is, and the names under which it keeps releases; without loading MLflow, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepalign.config import TrackingConfig

MODEL = "hepalign"
CHAMPION, CANDIDATE = "champion", "candidate"
SQLITE = "sqlite:///"


def tracking_uri(tracking: TrackingConfig | None = None, out: Path = Path("runs")) -> str:
    """MLflow's address: the config's, MLFLOW_TRACKING_URI, or SQLite in the output folder."""
    given = (tracking.uri if tracking else None) or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"{SQLITE}{(out / 'mlflow.db').resolve()}"


def exists(uri: str | None = None) -> bool:
    """Whether there is anything at the address; asking SQLite would make an empty database."""
    chosen = uri or tracking_uri()
    return not chosen.startswith(SQLITE) or Path(chosen.removeprefix(SQLITE)).is_file()
