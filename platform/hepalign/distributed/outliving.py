"""Work on a shared cluster that goes on when the process that asked for it is gone, and is found again by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hepalign.errors import HepalignError, UsageError, WorkFailedError
from hepalign.training.progress import warn

Result = TypeVar("Result")
Outcome = tuple[Any, HepalignError | None]
NAMESPACE = "hepalign"
# The work needs to reach what the asking process reaches.
PASSED_ON = ("MLFLOW_", "AWS_", "HEPALIGN_")
# Time enough for whoever waits to take the outcome; it is in the run's folder anyway.
STAYS_S = 10.0


class _Keeper:
    """Does one piece of work, tells its outcome, and ends itself."""

    def do(self, work: Callable[[], Any], environment: dict[str, str]) -> Outcome:
        os.environ.update(environment)
        try:
            return work(), None
        except HepalignError as error:
            return None, error
        finally:
            leave = threading.Timer(STAYS_S, os._exit, (0,))
            leave.daemon = True
            leave.start()

    def ended(self) -> None:
        """Comes back after `do`: an actor does one call after the other."""


def await_earlier(name: str, place: str) -> None:
    """Wait for the end of work that a vanished process left behind, however it ends.

    Whoever is interrupted while it waits (Ctrl-C, `ray job stop`) ends that work too.

    Args:
        name: of the work.
        place: where it keeps its files; names are told apart by it.
    """
    try:
        keeper: Any = ray.get_actor(f"{name} {place}", NAMESPACE)
    except ValueError:
        return
    warn(f"{name} is still at work: waiting for it")
    try:
        ray.get(keeper.ended.remote())
    except RayActorError:
        warn(f"{name} was lost")
    finally:
        ray.kill(keeper)


def outliving(name: str, place: str, work: Callable[[], Result]) -> Result:
    """The result of `work`, done by an actor of the cluster on this node.

    A process that is killed leaves the work behind, and it is done to its end. One that is interrupted (Ctrl-C,
    `ray job stop`) takes it along.

    Args:
        name: of the work.
        place: where it keeps its files.
        work: what to do; pickled.

    Raises:
        HepalignError: of the work.
        UsageError: `run_exists` while another process has this work done.
        WorkFailedError: `training_failed` when the work's own process was lost.
    """
    # Not softly: a busy node would pass the work on to one that may be lost, or that does not see the run's folder.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
    chosen = {"name": f"{name} {place}", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
    try:
        keeper: Any = ray.remote(_Keeper).options(scheduling_strategy=here, **chosen).remote()
    except ValueError as error:
        raise UsageError(f"{name} is at work already: --resume waits for it", code="run_exists") from error
    try:
        result, failure = ray.get(keeper.do.remote(work, passed))
    except RayActorError as error:
        raise WorkFailedError(
            f"{name}: its process on the cluster was lost; --resume goes on from the last checkpoint",
            code="training_failed",
        ) from error
    finally:
        # kill -9 never comes here; everything else ends the work too, or finds it ended
        ray.kill(keeper)
    if failure is not None:
        raise failure
    return cast("Result", result)
