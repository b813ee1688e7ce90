"""Work on a shared cluster that goes on when the process that asked for it is gone, and is found again by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hepalign.errors import HepalignError
from hepalign.training.progress import warn

Result = TypeVar("Result")
Outcome = tuple[Any, HepalignError | None]
NAMESPACE = "hepalign"
# The work needs to reach what the asking process reaches.
PASSED_ON = ("MLFLOW_", "AWS_", "HEPALIGN_")
# Time enough for whoever waits to take the outcome; it is in the run's folder anyway.
STAYS_S = 10.0


class _Keeper:
    """Does one piece of work, keeps its outcome for a while, and ends itself."""

    def do(self, work: Callable[[], Any], environment: dict[str, str]) -> Outcome:
        os.environ.update(environment)
        self._outcome: Outcome = None, None
        try:
            self._outcome = work(), None
        except HepalignError as error:
            self._outcome = None, error
        finally:
            leave = threading.Timer(STAYS_S, os._exit, (0,))
            leave.daemon = True
            leave.start()
        return self._outcome

    def outcome(self) -> Outcome:
        """After `do`: an actor does one call after the other."""
        return self._outcome


def outliving(name: str, work: Callable[[], Result]) -> Result:
    """The result of `work`, done by an actor of the cluster on this node.

    A process that is killed leaves the work behind: it is done to its end, and who asks for the same name meanwhile
    waits for it. One that is interrupted (Ctrl-C, `ray job stop`) takes it along.

    Raises:
        HepalignError: of the work.
    """
    keeper: Any
    try:
        keeper = ray.get_actor(name, NAMESPACE)
        warn(f"{name} is still at work: waiting for it")
        promise = keeper.outcome.remote()
    except ValueError:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        chosen = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
        keeper = ray.remote(_Keeper).options(scheduling_strategy=here, **chosen).remote()
        passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        promise = keeper.do.remote(work, passed)
    try:
        result, error = ray.get(promise)
    finally:
        # kill -9 never comes here; everything else ends the work too, or finds it ended
        ray.kill(keeper)
    if error is not None:
        raise error
    return cast("Result", result)
