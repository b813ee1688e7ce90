"""Evaluations in MLflow: filed when they are made, found again when the gate asks for a release's."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from hepalign.errors import UsageError
from hepalign.tracking.address import exists
from hepalign.tracking.gate import nameless
from hepalign.tracking.registry import client, ensure_experiment, reachable
from hepalign.training.progress import warn

EXPERIMENT = "hepalign/evaluations"
FOLDER, RESULTS = "evaluation", "results.json"
DIGEST_TAG = "weights_sha256"
# What MLflow takes in one request.
METRICS_PER_BATCH = 1000


def log_evaluation(means: Mapping[str, float], folder: Path) -> None:
    """File a finished evaluation: its means as metrics and its nameless results; never stops the evaluation.

    Pictures and names stay in the evaluation's folder.

    Args:
        means: flat means by name.
        folder: the evaluation's own, with its `results.json`.
    """
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    facts = results["provenance"]
    tags = {
        "release": facts["release"]["name"],
        DIGEST_TAG: weights_sha256(facts["release"]["digests"]),
        "cohort": facts["cohort"]["name"],
        "cohort_digest": facts["cohort"]["digest"],
        "split": facts["cohort"]["split"],
    }
    try:
        mlflow = client()
        run_id = mlflow.create_run(ensure_experiment(mlflow, EXPERIMENT), run_name=folder.name).info.run_id
        now = int(time.time() * 1000)
        metrics = [Metric(_metric_name(name), mean, now, 0) for name, mean in means.items() if np.isfinite(mean)]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            mlflow.log_batch(run_id, metrics[first : first + METRICS_PER_BATCH])
        mlflow.log_dict(run_id, nameless(results), f"{FOLDER}/{RESULTS}")
        mlflow.log_artifact(run_id, str(folder / "table2.csv"), FOLDER)
        # the tags come last: only a run that holds all of its files is found again
        mlflow.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        mlflow.set_terminated(run_id)
    except (MlflowException, OSError) as error:
        warn(f"MLflow is away ({type(error).__name__}); the evaluation is in its folder only")


@contextmanager
def filed_evaluation(digests: Mapping[str, str], split: str) -> Iterator[Path]:
    """The folder of the newest filed evaluation of these weights on this split, for as long as the block runs.

    Raises:
        UsageError: `no_evaluation` when there is none.
        WorkFailedError: `tracking_unreachable`.
    """
    with TemporaryDirectory() as scratch:
        with reachable("find the release's evaluation"):
            run_id = _newest(digests, split) if exists() else None
            folder = client().download_artifacts(run_id, FOLDER, scratch) if run_id is not None else None
        if folder is None:
            raise UsageError(
                f"the gate judges an evaluation, and none of this release's {split} split is filed: run "
                "`hepalign evaluate`, or name its folder with --report DIR",
                code="no_evaluation",
            )
        yield Path(folder)


def weights_sha256(digests: Mapping[str, str]) -> str:
    """One digest for a release's weights."""
    return hashlib.sha256(json.dumps(dict(sorted(digests.items()))).encode()).hexdigest()


def _newest(digests: Mapping[str, str], split: str) -> str | None:
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    wanted = f"tags.{DIGEST_TAG} = '{weights_sha256(digests)}' and tags.split = '{split}'"
    found: Any = mlflow.search_runs(
        [experiment.experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return str(found[0].info.run_id) if found else None


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w./ :-]", "_", name)
