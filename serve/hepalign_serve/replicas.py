"""The computing replicas: one network's step, or a lane's whole job."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry.trace import Span
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from hepalign.errors import HepalignError
from hepalign_serve import logs, tracing
from hepalign_serve.problems import document
from hepalign_serve.settings import Lane, Replicas, Settings
from hepalign_serve.shelf import open_shelf, storing
from hepalign_serve.task import Errand, LeftFile, Pinned

if TYPE_CHECKING:
    from hepalign_serve.pipeline import Pipeline

log = structlog.get_logger("hepalign_serve")

HEARTBEAT_S = 2.0
KEPT_RELEASES = 2
# Files whose digests are taken at once.
READERS = 2


class Releases:
    """A replica's cache of loaded releases: each request names its own, so none is ever mixed."""

    def __init__(self, name: str, settings: Settings, share: Replicas, pipeline: Pipeline | None) -> None:
        import torch

        logs.configure(name, settings.data_folder, settings.log_level)
        tracing.configure(name, settings.traces)
        torch.set_num_threads(share.threads or os.cpu_count() or 1)
        self.pipeline = pipeline or _chain()
        self.shelf = open_shelf(settings)
        self._bundles: dict[str, Any] = {}
        self._loading = threading.Lock()

    def bundle(self, release: Pinned) -> Any:
        """The release's networks, loaded aside the ones in use."""
        with self._loading:
            if release.digest not in self._bundles:
                self._bundles[release.digest] = self.pipeline.load(self.shelf.fetch_folder(release.key))
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


def _chain() -> Pipeline:
    from hepalign_serve.pipeline import HepalignPipeline

    return HepalignPipeline()


class Network:
    """A replica of one network, `synthesis` or `inpainting`: volumes in, volumes out."""

    def __init__(self, name: str, settings: Settings, share: Replicas, pipeline: Pipeline | None, step: str) -> None:
        self._step = step
        self._releases = Releases(name, settings, share, pipeline)

    async def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release; `{error}` when it is refused."""
        return await asyncio.to_thread(self._releases.warm, release)

    async def apply(self, release: Pinned, trace: str, *volumes: Any) -> dict[str, Any]:
        """`{value}` of the step, or `{error}`: refusals keep their code on the way."""
        return await asyncio.to_thread(self._apply, release, trace, *volumes)

    def _apply(self, release: Pinned, trace: str, *volumes: Any) -> dict[str, Any]:
        try:
            with tracing.span(f"network {self._step}", trace, release=release.version):
                return {"value": getattr(self._releases.pipeline, self._step)(self._releases.bundle(release), *volumes)}
        except HepalignError as error:
            return {"error": error}


class Worker:
    """A replica of one lane: runs plans or guides, the network step on its own deployment."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        lane: Lane,
        pipeline: Pipeline | None,
        network: DeploymentHandle[Any],
        step: str,
    ) -> None:
        self._lane = lane
        self._releases = Releases(name, settings, lane, pipeline)
        self._network = network
        self._network_step = step
        self._stuck = False

    async def warm(self, release: Pinned) -> dict[str, Any]:
        """Loads a release aside the ones in use, here and in the network's replica; `{error}` when it is refused."""
        here = await asyncio.to_thread(self._releases.warm, release)
        there: dict[str, Any] = await self._network.warm.remote(release)
        return here or there

    async def preload(self, plan_folder: str) -> None:
        """Reads a plan ahead, so that during the procedure only the iCT travels."""
        await asyncio.to_thread(self._preload, plan_folder)

    def _preload(self, plan_folder: str) -> None:
        self._releases.pipeline.preload(self._releases.shelf.fetch_folder(plan_folder))

    def check_health(self) -> None:
        """Serve replaces a replica whose job outlived the hard limit: threads cannot be stopped."""
        if self._stuck:
            raise RuntimeError("a job outlived its deadline")

    async def run(self, kind: str, release: Pinned, errand: Errand) -> AsyncIterator[dict[str, Any]]:
        """Heartbeats `{step, progress}` while it works, then one `{result, files}` or `{problem}`."""
        latest = {"step": "starting", "progress": 0.0}
        work = asyncio.create_task(asyncio.to_thread(self._outcome, kind, release, errand, latest))
        deadline = asyncio.get_running_loop().time() + self._lane.deadline_s
        while True:
            yield dict(latest)
            left_s = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({work}, timeout=min(HEARTBEAT_S, max(left_s, 0.0)))
            if done:
                yield work.result()
                return
            if left_s <= 0:
                self._stuck = True
                yield {"problem": document("deadline", 504, "the job took longer than the server allows")}
                return

    def _outcome(self, kind: str, release: Pinned, errand: Errand, latest: dict[str, Any]) -> dict[str, Any]:
        try:
            with storing(), tracing.span(f"compute {kind}", errand.trace, release=release.version) as opened:
                return self._compute(kind, release, errand, latest, tracing.name_of(opened))
        except HepalignError as error:
            return {"problem": document(error.code, error.status, error.message)}
        except MemoryError:
            return {"problem": document("out_of_memory", 503, "the images need more memory than there is")}
        except Exception:
            log.exception("work_failed", kind=kind, job=errand.job_id)
            return {"problem": document("work_failed", 503, "the work failed; the operator's log says why")}

    def _compute(
        self, kind: str, release: Pinned, errand: Errand, latest: dict[str, Any], trace: str
    ) -> dict[str, Any]:
        pipeline, shelf = self._releases.pipeline, self._releases.shelf
        task = errand.here(shelf)
        shutil.rmtree(task.out, ignore_errors=True)
        task.out.mkdir(parents=True)
        compute = pipeline.plan if kind == "plan" else pipeline.guide
        with _step_by_step(latest, trace) as progress:
            result = compute(self._releases.bundle(release), task, self._step(release, trace), progress)
        files = left_files(task.out, errand.out)
        for file in files:
            shelf.keep(file.path)
        return {"result": result, "files": files}

    def _step(self, release: Pinned, trace: str) -> Callable[..., Any]:
        def remote(bundle: object, *volumes: Any) -> Any:
            try:
                answer = self._network.apply.remote(release, trace, *volumes).result(timeout_s=self._lane.deadline_s)
            except RayActorError:
                # The same network of the same release is here too: nobody waits for a replica to come back.
                log.warning("network_replica_lost", step=self._network_step)
                return getattr(self._releases.pipeline, self._network_step)(bundle, *volumes)
            if "error" in answer:
                raise answer["error"]
            return answer["value"]

        return remote


@contextmanager
def _step_by_step(latest: dict[str, Any], trace: str) -> Iterator[Callable[[str, float], None]]:
    """What a pipeline calls at each step: it goes into the heartbeat, and each step is a span."""
    steps: list[Span] = []

    def progress(step: str, fraction: float) -> None:
        latest.update(step=step, progress=fraction)
        if steps:
            steps.pop().end()
        steps.append(tracing.start(f"step {step}", trace))

    try:
        yield progress
    finally:
        for opened in steps:
            opened.end()


def left_files(folder: Path, key: str) -> list[LeftFile]:
    """The result files of an attempt, whose folder on the shelf is `key`, with their digests."""

    def left(path: Path) -> LeftFile:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return LeftFile(path.name, f"{key}/{path.name}", sha256, path.stat().st_size)

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(left, sorted(p for p in folder.iterdir() if p.is_file())))
