"""How MLflow is reached: short time limits, one line for its failures, experiments."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from hepalign.errors import WorkFailedError
from hepalign.tracking.address import SQLITE, exists, tracking_uri


def client(uri: str | None = None) -> MlflowClient:
    """A client that gives up within seconds instead of MLflow's minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    chosen = uri or tracking_uri()
    if chosen.startswith(SQLITE):
        _make_tables(chosen)
    return MlflowClient(tracking_uri=chosen, registry_uri=chosen)


@cache
def _make_tables(uri: str) -> None:
    """Let one process at a time look whether a SQLite file has its tables: MLflow's migrations do not bear two."""
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


@contextmanager
def reachable(what: str) -> Iterator[None]:
    """Turn MLflow's failures into one line that says what did not happen.

    Raises:
        WorkFailedError: `tracking_unreachable`.
    """
    try:
        yield
    except (MlflowException, OSError) as error:
        refused = isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)  # type: ignore[no-untyped-call]
        check = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if refused else "MLFLOW_TRACKING_URI"
        raise WorkFailedError(
            f"{what}: MLflow does not answer as it should ({type(error).__name__}); nothing was changed: "
            f"check {check} and try again",
            code="tracking_unreachable",
        ) from error


def ensure_experiment(mlflow: MlflowClient, name: str) -> str:
    """The experiment's id; SQLite's keeps its files beside the database."""
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(mlflow.create_experiment(name, artifact_location=artifact_location(mlflow.tracking_uri, name)))
    except MlflowException:
        made_meanwhile = mlflow.get_experiment_by_name(name)
        if made_meanwhile is None:
            raise
        return str(made_meanwhile.experiment_id)


def artifact_location(uri: str, name: str) -> str | None:
    """Where an experiment's files go; None: where the server puts them."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" / name).resolve().as_uri()


def ping() -> str:
    """The tracking server's scheme, if it answers.

    Raises:
        WorkFailedError: `tracking_unreachable`.
    """
    uri = tracking_uri()
    scheme = uri.partition(":")[0]
    if not exists(uri):
        return f"{scheme}, no run yet"
    with reachable("doctor"):
        runs = client(uri).search_experiments(max_results=1)
    return f"{scheme}, answers" if runs else f"{scheme}, empty"
