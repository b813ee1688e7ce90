"""The replicas: planning and guidance compute, the desk keeps the books, the ingress speaks HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import threading
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from hepalign.errors import HepalignError
from hepalign_serve.pinned import Pinned
from hepalign_serve.pipeline import Pipeline, Task
from hepalign_serve.problems import document
from hepalign_serve.settings import Lane, Settings

logger = logging.getLogger("hepalign_serve")

HEARTBEAT_S = 2.0
KEPT_RELEASES = 2


class Worker:
    """A replica of one lane. It caches releases: each request names its own, so none is ever mixed."""

    def __init__(self, lane: Lane, pipeline: Pipeline) -> None:
        import torch

        torch.set_num_threads(lane.threads)
        self._lane = lane
        self._pipeline = pipeline
        self._bundles: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._stuck = False

    def warm(self, release: Pinned) -> str:
        """Loads a release aside the ones in use; returns its digest."""
        self._bundle(release)
        return release.digest

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
            done, _ = await asyncio.wait({work}, timeout=HEARTBEAT_S)
            if done:
                yield work.result()
                return
            if asyncio.get_running_loop().time() > deadline:
                self._stuck = True
                yield {"problem": document("deadline", 504, "the job took longer than the server allows")}
                return
            yield dict(latest)

    def _outcome(self, kind: str, release: Pinned, task: Task, progress: Any) -> dict[str, Any]:
        shutil.rmtree(task.out, ignore_errors=True)
        try:
            task.out.mkdir(parents=True)
            compute = self._pipeline.plan if kind == "plan" else self._pipeline.guide
            return {"result": compute(self._bundle(release), task, progress)}
        except HepalignError as error:
            return {"problem": document(error.code, error.status, error.message)}
        except MemoryError:
            return {"problem": document("out_of_memory", 503, "the images need more memory than there is")}
        except Exception:
            logger.exception("a %s failed", kind)
            return {"problem": document("work_failed", 503, "the work failed; the operator's log says why")}

    def _bundle(self, release: Pinned) -> Any:
        with self._loading:
            if release.digest not in self._bundles:
                self._bundles[release.digest] = self._pipeline.load(release.folder)
                while len(self._bundles) > KEPT_RELEASES:
                    self._bundles.pop(next(iter(self._bundles)))
            return self._bundles[release.digest]


class Ingress:
    """Speaks HTTP; holds no state of its own."""

    def __init__(self, settings: Settings, desk: DeploymentHandle[Any]) -> None:
        self._settings = settings
        self._desk = desk

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from hepalign_serve.api import create_app

        return create_app(self._settings, _RemoteDesk(self._desk))


class _RemoteDesk:
    """The desk as the API sees it."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def record(self, **line: str) -> None:
        await self._call("record", **line)

    async def wake(self) -> None:
        with contextlib.suppress(Exception):
            await self._call("wake")

    async def status(self) -> dict[str, Any]:
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

    small = {"num_cpus": 0.01}
    planning, guidance = (
        serve.deployment(
            name=name,
            num_replicas=lane.replicas,
            max_ongoing_requests=1,
            max_queued_requests=settings.limits.queued_jobs,
            health_check_period_s=1,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=lane.deadline_s,
            ray_actor_options={"num_cpus": lane.num_cpus, "num_gpus": lane.num_gpus},
        )(Worker).bind(lane, pipeline)
        for name, lane in (("Planning", settings.plan), ("Guidance", settings.guide))
    )
    desk = serve.deployment(name="Desk", num_replicas=1, max_ongoing_requests=200, ray_actor_options=small)(Desk)
    bound = desk.bind(settings, planning, guidance)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=200,
        max_queued_requests=200,
        ray_actor_options=small,
    )(serve.ingress()(Ingress))
    app: serve.Application = ingress.bind(settings, bound)
    return app
