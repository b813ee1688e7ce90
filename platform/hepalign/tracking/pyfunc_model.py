"""A release as an MLflow model, from code: `mlflow.pyfunc.load_model("models:/hepalign@champion").predict(frame)`.

For scoring batches from MLflow's own tools. Serving never goes this way: it loads the pinned safetensors itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from hepalign.cases.cohort import open_cohort
from hepalign.inference.bundle import load_bundle
from hepalign.inference.whole_case import run_case


class ReleaseModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]  # MLflow has no stubs
    """Plans and guides cases of cohorts."""

    def load_context(self, context: Any) -> None:
        """Load the release, every file checked against its digest."""
        self.bundle = load_bundle(Path(context.artifacts["release"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per row of `model_input` (columns `cohort`, `case`, and optionally `out`, a folder for the files)."""
        rows = []
        for wanted in model_input.to_dict("records"):
            cohort = open_cohort(wanted["cohort"])
            case = next(case for case in cohort.cases() if case.id == wanted["case"])
            out = Path(wanted["out"]) if wanted.get("out") else None
            found = run_case(self.bundle, cohort, case, out)
            rows.append({"case": case.id, **found["quality"]})
        return pd.DataFrame(rows)


mlflow.models.set_model(ReleaseModel())
