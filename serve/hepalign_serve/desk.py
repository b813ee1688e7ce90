"""The one process that keeps the books: it writes the audit, hands out jobs and watches the release."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from hepalign.errors import HepalignError
from hepalign_serve import housekeeping, logs, work
from hepalign_serve.audit import Audit
from hepalign_serve.metrics import Metrics, Seen
from hepalign_serve.problems import document
from hepalign_serve.records import Records
from hepalign_serve.releases import pin
from hepalign_serve.settings import Lane, Settings
from hepalign_serve.task import Pinned, Task

log = structlog.get_logger("hepalign_serve")

IDLE_S = 1.0
QUEUES_EVERY_S = 5.0


class Desk:
    """Runs as a single replica; what it knows stands in the database, so it may die at any time."""

    def __init__(self, settings: Settings, planning: DeploymentHandle[Any], guidance: DeploymentHandle[Any]) -> None:
        logs.configure("Desk", settings.data_folder, settings.log_level)
        self._settings = settings
        self._records = Records(settings.database)
        self._audit = Audit(self._records, settings.anchor)
        self._metrics = Metrics()
        self._metrics.expose(settings.metrics_host, settings.metrics_port)
        self._workers: dict[work.Kind, DeploymentHandle[Any]] = {"plan": planning, "guide": guidance}
        self._release: Pinned | None = None
        self._wake = {kind: asyncio.Event() for kind in self._workers}
        loops = (self._watch_release, self._keep_house, self._count_queues)
        self._tasks = [asyncio.create_task(self._keep(loop)) for loop in loops]
        for kind, lane in self._lanes().items():
            self._tasks += [asyncio.create_task(self._keep(self._serve_lane, kind)) for _ in range(lane.replicas)]

    async def record(self, **line: str) -> dict[str, Any]:
        """Appends to the audit; `{problem}` when that failed. One line at a time: this never awaits."""
        try:
            self._audit.append(**line)
        except HepalignError as error:
            return {"problem": document(error.code, error.status, error.message)}
        return {}

    async def wake(self) -> None:
        """There may be new work."""
        for event in self._wake.values():
            event.set()

    async def observe(self, seen: list[Seen]) -> None:
        """What the ingress answered lately."""
        for request in seen:
            self._metrics.request(request)

    async def status(self) -> dict[str, Any]:
        """The release in force (None until it is warm)."""
        release = self._release
        return {"release": None if release is None else {"folder": str(release.folder), "digest": release.digest,
                "name": release.name, "version": release.version}}  # fmt: skip

    def _lanes(self) -> dict[work.Kind, Lane]:
        return {"plan": self._settings.plan, "guide": self._settings.guide}

    async def _keep(self, loop: Any, *words: Any) -> None:
        while True:
            try:
                await loop(*words)
            except Exception:
                log.exception("goes_on", loop=loop.__name__)
                await asyncio.sleep(IDLE_S)

    async def _watch_release(self) -> None:
        try:
            await self._take_release()
        except HepalignError as error:
            # What is served goes on; a registry that is down or a release that is refused changes nothing.
            log.warning("release_refused", code=error.code)
        await asyncio.sleep(self._settings.release_poll_s)

    async def _take_release(self) -> None:
        settings = self._settings
        verify = not settings.unjudged_release
        release = await asyncio.to_thread(pin, settings.release, settings.data_folder / "releases", verify=verify)
        if self._release is not None and release.digest == self._release.digest:
            return
        for answer in await asyncio.gather(*(handle.warm.remote(release) for handle in self._workers.values())):
            if "error" in answer:
                raise answer["error"]
        self._release = release
        self._metrics.release(release.name, release.version, release.digest)
        log.info("serving_release", name=release.name, version=release.version, digest=release.digest)
        await self.wake()

    async def _keep_house(self) -> None:
        records, data_folder = self._records, self._settings.data_folder
        for case_id, site in await asyncio.to_thread(housekeeping.expired, records, self._settings.retention_days):
            self._audit.append(site=site, action="expire", target=case_id, outcome="allowed", request_id="retention")
            await asyncio.to_thread(housekeeping.erase, records, data_folder, case_id)
        await asyncio.to_thread(housekeeping.sweep, records, data_folder)
        await asyncio.sleep(self._settings.housekeeping_s)

    async def _count_queues(self) -> None:
        self._metrics.queues(await asyncio.to_thread(work.queue_lengths, self._records))
        await asyncio.sleep(QUEUES_EVERY_S)

    async def _serve_lane(self, kind: work.Kind) -> None:
        lane = self._lanes()[kind]
        self._wake[kind].clear()
        if self._release is not None:
            held = await asyncio.to_thread(work.claim, self._records, kind, lane.attempts)
            if held is not None:
                await self._run(held, self._release, lane)
                return
        try:
            async with asyncio.timeout(IDLE_S):
                await self._wake[kind].wait()
        except TimeoutError:
            pass

    async def _run(self, held: work.Claim, release: Pinned, lane: Lane) -> None:
        task = self._task(held)
        outcome: dict[str, Any] = {}
        try:
            async with asyncio.timeout(lane.deadline_s + 10):
                worker = self._workers[_lane_of(held)].options(stream=True)
                messages: AsyncIterator[dict[str, Any]] = worker.run.remote(held.kind, release, task)  # type: ignore[assignment]
                async for outcome in messages:
                    if "step" in outcome and not await self._renew(held, outcome):
                        return
        except TimeoutError:
            outcome = {"problem": document("deadline", 504, "the job took longer than the server allows")}
        except RayError:
            log.warning("replica_lost", job=held.job_id, attempt=held.attempt)
            await asyncio.to_thread(work.give_back, self._records, held)
            return
        await asyncio.to_thread(self._publish, held, task, outcome)

    async def _renew(self, held: work.Claim, beat: dict[str, Any]) -> bool:
        return await asyncio.to_thread(work.renew, self._records, held, beat["step"], beat["progress"])

    def _publish(self, held: work.Claim, task: Task, outcome: dict[str, Any]) -> None:
        self._metrics.job(held.kind, outcome)
        if "result" in outcome:
            files = left_files(task.out, self._settings.data_folder)
            counted = work.succeed(self._records, held, outcome["result"], files)
        else:
            counted = False
            work.fail(self._records, held, outcome["problem"])
        if not counted:
            shutil.rmtree(task.out, ignore_errors=True)
            return
        for other in task.out.parent.iterdir():
            if other != task.out:
                shutil.rmtree(other, ignore_errors=True)
        if held.kind == "plan":
            self._workers["guide"].preload.remote(task.out)

    def _task(self, held: work.Claim) -> Task:
        data, request = self._settings.data_folder, held.request
        folder = {
            name: data / request[name] if request.get(name) else None for name in ("plan_folder", "previous_folder")
        }
        return Task(
            images={role: data / path for role, path in request["images"].items()},
            options=request["options"],
            out=data / "cases" / held.case_id / "jobs" / held.job_id / f"attempt-{held.attempt}",
            plan_folder=folder["plan_folder"],
            previous_folder=folder["previous_folder"],
        )


def left_files(folder: Path, data_folder: Path) -> list[work.LeftFile]:
    """The result files of an attempt with their digests."""
    left = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        left.append(work.LeftFile(path.name, str(path.relative_to(data_folder)), sha256, path.stat().st_size))
    return left


def _lane_of(held: work.Claim) -> work.Kind:
    return "plan" if held.kind == "plan" else "guide"
