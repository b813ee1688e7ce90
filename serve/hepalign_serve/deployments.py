"""The replicas: planning and guidance compute, the desk keeps the books, the ingress speaks HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from hepalign.errors import HepalignError
from hepalign_serve import logs
from hepalign_serve.metrics import Seen
from hepalign_serve.payload import storage_error
from hepalign_serve.problems import document
from hepalign_serve.settings import Lane, Settings
from hepalign_serve.task import Pinned, Task

if TYPE_CHECKING:
    # Ingress and desk stay small: only computing replicas load torch.
    from hepalign_serve.pipeline import Pipeline, Progress

log = structlog.get_logger("hepalign_serve")

HEARTBEAT_S = 2.0
TELL_EVERY_S = 1.0
KEPT_RELEASES = 2


class Releases:
    """A replica's cache of loaded releases: each request names its own, so none is ever mixed."""

    def __init__(self, name: str, settings: Settings, lane: Lane, pipeline: Pipeline) -> None:
        import torch

        logs.configure(name, settings.data_folder, settings.log_level)

        torch.set_num_threads(lane.threads)
        self.pipeline = pipeline
        self._bundles: dict[str, Any] = {}
        self._loading = threading.Lock()

    def bundle(self, release: Pinned) -> Any:
        """The release's networks, loaded aside the ones in use."""
        with self._loading:
            if release.digest not in self._bundles:
                self._bundles[release.digest] = self.pipeline.load(release.folder)
                while len(self._bundles) > KEPT_RELEASES:
                    self._bundles.pop(next(iter(self._bundles)))
            return self._bundles[release.digest]

    def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release; `{error}` when it is refused."""
        try:
            self.bundle(release)
        except HepalignError as error:
            return {"error": error}
        return {}


class Network:
    """A replica of one network, `synthesis` or `inpainting`: volumes in, volumes out."""

    def __init__(self, name: str, settings: Settings, lane: Lane, pipeline: Pipeline, step: str) -> None:
        self._step = step
        self._releases = Releases(name, settings, lane, pipeline)

    async def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release; `{error}` when it is refused."""
        return await asyncio.to_thread(self._releases.warm, release)

    async def apply(self, release: Pinned, *volumes: Any) -> dict[str, Any]:
        """`{value}` of the step, or `{error}`: refusals keep their code on the way."""
        return await asyncio.to_thread(self._apply, release, *volumes)

    def _apply(self, release: Pinned, *volumes: Any) -> dict[str, Any]:
        try:
            return {"value": getattr(self._releases.pipeline, self._step)(self._releases.bundle(release), *volumes)}
        except HepalignError as error:
            return {"error": error}


class Worker:
    """A replica of one lane: runs plans or guides, the network step on its own deployment."""

    def __init__(
        self, name: str, settings: Settings, lane: Lane, pipeline: Pipeline, network: DeploymentHandle[Any]
    ) -> None:
        self._lane = lane
        self._releases = Releases(name, settings, lane, pipeline)
        self._network = network
        self._network_step = "synthesise" if name == "Planning" else "inpaint"
        self._stuck = False

    async def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release aside the ones in use, here and in the network's replica; `{error}` when it is refused."""
        here = await asyncio.to_thread(self._releases.warm, release)
        there: dict[str, Any] = await self._network.warm.remote(release)
        return here or there

    async def preload(self, plan_folder: Path) -> None:
        """Reads a plan ahead, so that during the procedure only the iCT travels."""
        await asyncio.to_thread(self._releases.pipeline.preload, plan_folder)

    def check_health(self) -> None:
        """Serve replaces a replica whose job outlived the hard limit: threads cannot be stopped."""
        if self._stuck:
            raise RuntimeError("a job outlived its deadline")

    async def run(self, kind: str, release: Pinned, task: Task) -> AsyncIterator[dict[str, Any]]:
        """Heartbeats `{step, progress}` while it works, then one `{result}` or `{problem}`."""
        latest = {"step": "starting", "progress": 0.0}

        def progress(step: str, fraction: float) -> None:
            latest.update(step=step, progress=fraction)

        work = asyncio.create_task(asyncio.to_thread(self._outcome, kind, release, task, progress))
        deadline = asyncio.get_running_loop().time() + self._lane.deadline_s
        while True:
            left_s = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({work}, timeout=min(HEARTBEAT_S, max(left_s, 0.0)))
            if done:
                yield work.result()
                return
            if left_s <= 0:
                self._stuck = True
                yield {"problem": document("deadline", 504, "the job took longer than the server allows")}
                return
            yield dict(latest)

    def _outcome(self, kind: str, release: Pinned, task: Task, progress: Progress) -> dict[str, Any]:
        shutil.rmtree(task.out, ignore_errors=True)
        try:
            task.out.mkdir(parents=True)
            compute = self._releases.pipeline.plan if kind == "plan" else self._releases.pipeline.guide
            return {"result": compute(self._releases.bundle(release), task, self._step(release), progress)}
        except HepalignError as error:
            return {"problem": document(error.code, error.status, error.message)}
        except OSError as error:
            refusal = storage_error(error)
            return {"problem": document(refusal.code, refusal.status, refusal.message)}
        except MemoryError:
            return {"problem": document("out_of_memory", 503, "the images need more memory than there is")}
        except Exception:
            log.exception("work_failed", kind=kind, job=task.out.parent.name)
            return {"problem": document("work_failed", 503, "the work failed; the operator's log says why")}

    def _step(self, release: Pinned) -> Callable[..., Any]:
        def remote(bundle: object, *volumes: Any) -> Any:
            try:
                answer = self._network.apply.remote(release, *volumes).result(timeout_s=self._lane.deadline_s)
            except RayActorError:
                # The same network of the same release is here too: nobody waits for a replica to come back.
                log.warning("network_replica_lost", step=self._network_step)
                return getattr(self._releases.pipeline, self._network_step)(bundle, *volumes)
            if "error" in answer:
                raise answer["error"]
            return answer["value"]

        return remote


class Ingress:
    """Speaks HTTP; holds no state of its own."""

    def __init__(self, settings: Settings, desk: DeploymentHandle[Any]) -> None:
        logs.configure("Ingress", settings.data_folder, settings.log_level)
        self._settings = settings
        self._desk = desk

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from hepalign_serve.api import create_app

        desk = RemoteDesk(self._desk)
        return create_app(self._settings, desk, desk.observe)


class RemoteDesk:
    """The desk as the API sees it."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._seen: list[Seen] = []
        self._telling: asyncio.Task[None] | None = None

    def observe(self, seen: Seen) -> None:
        """Notes a request for the metrics; the desk hears of many at once."""
        self._seen.append(seen)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        await asyncio.sleep(TELL_EVERY_S)
        seen, self._seen = self._seen, []
        with contextlib.suppress(HepalignError):
            await self._call("observe", seen=seen)

    async def record(self, **line: str) -> None:
        """See `DeskClient`."""
        await self._call("record", **line)

    async def wake(self) -> None:
        """See `DeskClient`."""
        with contextlib.suppress(Exception):
            await self._call("wake")

    async def status(self) -> dict[str, Any]:
        """See `DeskClient`."""
        status: dict[str, Any] = await self._call("status")
        return status

    async def _call(self, method: str, **words: Any) -> Any:
        from hepalign_serve.problems import busy

        try:
            async with asyncio.timeout(10):
                answer = await getattr(self._handle, method).remote(**words)
        except Exception as error:
            raise busy("the desk cannot be reached", "desk_unavailable", 503) from error
        if answer and "problem" in answer:
            problem = answer["problem"]
            raise busy(problem["detail"], problem["code"], problem["status"])
        return answer


def compose(settings: Settings, pipeline: Pipeline) -> serve.Application:
    """The application: ingress → desk → (planning, guidance)."""
    from hepalign_serve.desk import Desk

    plan, guide = settings.plan, settings.guide
    synthesis = _computing(Network, "Synthesis", settings, plan, pipeline, "synthesise")
    inpainting = _computing(Network, "Inpainting", settings, guide, pipeline, "inpaint")
    planning = _computing(Worker, "Planning", settings, plan, pipeline, synthesis)
    guidance = _computing(Worker, "Guidance", settings, guide, pipeline, inpainting)
    small = {"num_cpus": 0.01}
    desk = serve.deployment(name="Desk", num_replicas=1, max_ongoing_requests=200, ray_actor_options=small)(Desk)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=200,
        max_queued_requests=200,
        ray_actor_options=small,
    )(serve.ingress()(Ingress))
    app: serve.Application = ingress.bind(settings, desk.bind(settings, planning, guidance))
    return app


def _computing(
    kind: type, name: str, settings: Settings, lane: Lane, pipeline: Pipeline, needs: object
) -> serve.Application:
    deployment = serve.deployment(
        name=name,
        num_replicas=lane.replicas,
        max_ongoing_requests=1,
        max_queued_requests=settings.limits.queued_jobs,
        health_check_period_s=1,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=lane.deadline_s,
        ray_actor_options={"num_cpus": lane.num_cpus, "num_gpus": lane.num_gpus},
    )(kind)
    bound: serve.Application = deployment.bind(name, settings, lane, pipeline, needs)
    return bound
