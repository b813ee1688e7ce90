"""The Ray cluster that work runs on: the one of RAY_ADDRESS, or a private one on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from hepalign.errors import UsageError, WorkFailedError

# Ray puts Unix sockets below its folder, and their paths may have 107 characters.
LONGEST_TEMP_DIR = 40
# Ray Train's helpers repeat harmless warnings every second where there is no dashboard.
QUIET = ray.LoggingConfig(log_level="ERROR")


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray, for the length of a block.

    A session that is already open is used and left open. Otherwise RAY_ADDRESS names the cluster; without it a private
    one is started on this machine, with a token that only this process's children know, and ended with the block.

    Args:
        num_cpus: of a private cluster; None: this machine's cores.

    Raises:
        WorkFailedError: `cluster_unreachable`.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    folder = None if address else _short_folder()
    try:
        if address:
            _join(address)
        else:
            _start(str(folder), num_cpus or os.cpu_count())
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def is_shared() -> bool:
    """Whether the cluster is one of others, which outlives this process."""
    return bool(os.environ.get("RAY_ADDRESS"))


def require_cpus(needed: float, what: str) -> None:
    """Refuse what the cluster can never run, instead of waiting for ever.

    Raises:
        UsageError: `too_few_cpus`.
    """
    there = float(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    if needed > there + 1e-6:
        raise UsageError(
            f"{what} needs {needed:g} CPUs and the cluster has {there:g}: lower workers.count or workers.cpus, "
            "or set workers.autoscaling=true where nodes come on demand",
            code="too_few_cpus",
        )


def cluster_facts() -> tuple[int, float, float]:
    """Nodes, CPUs and GPUs of the cluster that RAY_ADDRESS names.

    Raises:
        WorkFailedError: `cluster_unreachable`.
    """
    with ray_session():
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return len(nodes), there.get("CPU", 0.0), there.get("GPU", 0.0)


def _start(folder: str, num_cpus: int | None) -> None:
    # Nobody takes this machine away at short notice: one helper process less.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray's workers would give way to everything else on the machine; here they are the work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray turns token authentication on for a private cluster; without this it would write one to the home.
    if not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
    try:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=folder, logging_config=QUIET)
    except Exception as error:
        raise WorkFailedError(
            "Ray did not start on this machine: give it memory and processor time, and try again",
            code="cluster_unreachable",
        ) from error


def _join(address: str) -> None:
    try:
        ray.init(address=address, logging_config=QUIET)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise WorkFailedError(f"RAY_ADDRESS: {_why(error)}", code="cluster_unreachable") from error


def _why(error: BaseException) -> str:
    said = f"{error} {error.__cause__}"
    if "AuthToken" in said:
        return "the cluster refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
    if "ersion mismatch" in said:
        return "the cluster runs another version of Ray or Python: use the one of requirements.lock on both sides"
    return "no Ray cluster answers: start one, or unset the variable to work on this machine"


def _has_token() -> bool:
    return "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ


def _short_folder() -> Path:
    chosen = Path(tempfile.gettempdir())
    base = chosen if len(str(chosen)) < LONGEST_TEMP_DIR else Path("/tmp")  # noqa: S108 - mkdtemp makes it private
    return Path(tempfile.mkdtemp(prefix="ray-", dir=base))
