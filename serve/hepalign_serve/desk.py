"""The one process that keeps the books: it writes the audit, hands out jobs and watches the release."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from sqlalchemy.exc import SQLAlchemyError

from hepalign.errors import HepalignError
from hepalign_serve import drift, housekeeping, logs, tracing, work
from hepalign_serve.audit import Audit
from hepalign_serve.candidate import Candidate
from hepalign_serve.metrics import Metrics, Seen
from hepalign_serve.problems import document
from hepalign_serve.rates import Rates
from hepalign_serve.records import Records
from hepalign_serve.releases import pin
from hepalign_serve.settings import Lane, Settings
from hepalign_serve.shelf import open_shelf
from hepalign_serve.task import Errand, Pinned
from hepalign_serve.waiting import Ends

log = structlog.get_logger("hepalign_serve")

IDLE_S = 1.0
QUEUES_EVERY_S = 5.0
# A replica tells where it stands every two seconds; a desk that died frees its jobs after a whole lease.
RENEW_EVERY_S = work.LEASE_S / 5
PATIENCE_S = 10.0


class Desk:
    """Runs as a single replica; what it knows stands in the database, so it may die at any time."""

    def __init__(
        self,
        settings: Settings,
        planning: DeploymentHandle[Any],
        registration: DeploymentHandle[Any],
        shadow: DeploymentHandle[Any] | None,
    ) -> None:
        logs.configure("Desk", settings.data_folder, settings.log_level)
        tracing.configure("Desk", settings.traces)
        self._settings = settings
        self._records = Records(settings.database)
        self._shelf = open_shelf(settings)
        self._metrics = Metrics()
        self._metrics.expose(settings.metrics_host, settings.metrics_port)
        self._audit = Audit(self._records, settings.anchor)
        self._metrics.audit(self._audit.intact)
        self._rates = Rates(settings.limits)
        self._workers: dict[work.Kind, DeploymentHandle[Any]] = {"plan": planning, "guide": registration}
        self._releases: dict[work.Kind, Pinned] = {}
        self._wanted: Pinned | None = None
        self._news = {kind: asyncio.Event() for kind in self._workers}
        self._candidate = Candidate(settings, self._records, self._shelf, self._metrics, shadow) if shadow else None
        self._wake = {kind: asyncio.Event() for kind in self._workers}
        self._ends = Ends()
        loops = [self._watch_release, self._keep_house, self._count_queues, self._look_for_drift]
        self._tasks = [asyncio.create_task(self._keep(loop)) for loop in loops]
        if self._candidate is not None:
            self._tasks.append(asyncio.create_task(self._keep(self._candidate.watch)))
        for kind, lane in self._lanes().items():
            self._tasks.append(asyncio.create_task(self._keep(self._follow_release, kind)))
            self._tasks += [asyncio.create_task(self._keep(self._serve_lane, kind)) for _ in range(lane.most)]

    async def record(self, **line: str) -> dict[str, Any]:
        """Appends to the audit; `{problem}` when that failed. One line at a time: this never awaits."""
        try:
            self._audit.append(**line)
        except HepalignError as error:
            return {"problem": document(error.code, error.status, error.message)}
        return {}

    async def admit(self, site: str) -> dict[str, Any]:
        """Counts a request of a site, over all ingress replicas; `{admitted}`."""
        return {"admitted": self._rates.admit(site)}

    async def wake(self) -> None:
        """There may be new work."""
        for event in self._wake.values():
            event.set()

    async def next_end(self, seen: int) -> dict[str, Any]:
        """`{ended}`: how many jobs ended here, as `Ends.after` says it."""
        return {"ended": await self._ends.after(seen)}

    async def observe(self, seen: list[Seen]) -> None:
        """What the ingress answered lately."""
        for request in seen:
            self._metrics.request(request)

    async def status(self) -> dict[str, Any]:
        """The release that guides are answered with (None until it is warm); plans wait for theirs in the queue."""
        release = self._releases.get("guide")
        if release is None:
            return {"release": None}
        return {"release": {"digest": release.digest, "name": release.name, "version": release.version,
                "networks": dict(release.networks)}}  # fmt: skip

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
            verify = not self._settings.unjudged_release
            self._wanted = await asyncio.to_thread(pin, self._settings.release, self._shelf, verify=verify)
        except HepalignError as error:
            self._refused(error)
        else:
            for news in self._news.values():
                news.set()
        await asyncio.sleep(self._settings.release_poll_s)

    async def _follow_release(self, kind: work.Kind) -> None:
        # Each lane changes over once its own replicas are warm: a guide's release never waits for a long plan.
        await self._news[kind].wait()
        wanted = self._wanted
        assert wanted is not None
        try:
            await self._take(kind, wanted)
        except HepalignError as error:
            self._refused(error)
        if self._wanted == wanted:
            self._news[kind].clear()

    def _refused(self, error: HepalignError) -> None:
        # What is served goes on; a registry that is down or a release that is refused changes nothing.
        self._metrics.release_refused(error.code)
        log.warning("release_refused", code=error.code)

    async def _take(self, kind: work.Kind, release: Pinned) -> None:
        if kind in self._releases and self._releases[kind].digest == release.digest:
            return
        # As many calls at once as there are replicas reach each of them, as one takes one call at a time.
        calls = [self._workers[kind].warm.remote(release) for _ in range(self._lanes()[kind].replicas)]
        for answer in await asyncio.gather(*calls):
            if "error" in answer:
                raise answer["error"]
        if release != self._wanted:
            # Taken back while replicas were warming up: nothing is served with it.
            return
        self._releases[kind] = release
        if kind == "guide":
            self._metrics.release(release.name, release.version, release.digest)
        log.info("serving_release", kind=kind, name=release.name, version=release.version, digest=release.digest)
        self._wake[kind].set()

    async def _keep_house(self) -> None:
        records, shelf = self._records, self._shelf
        for case_id, site in await asyncio.to_thread(housekeeping.expired, records, self._settings.retention_days):
            self._audit.append(site=site, action="expire", target=case_id, outcome="allowed", request_id="retention")
            await asyncio.to_thread(housekeeping.erase, records, shelf, case_id)
        await asyncio.to_thread(housekeeping.sweep, records, shelf)
        await asyncio.sleep(self._settings.housekeeping_s)

    async def _count_queues(self) -> None:
        self._metrics.queues(await asyncio.to_thread(work.queue_lengths, self._records))
        await asyncio.sleep(QUEUES_EVERY_S)

    async def _look_for_drift(self) -> None:
        self._metrics.drift(await asyncio.to_thread(drift.drifts, self._records))
        await asyncio.sleep(self._settings.housekeeping_s)

    async def _serve_lane(self, kind: work.Kind) -> None:
        lane = self._lanes()[kind]
        self._wake[kind].clear()
        if kind in self._releases:
            held = await asyncio.to_thread(work.claim, self._records, kind, lane.attempts)
            if held is not None:
                await self._run(held, self._releases[kind], lane)
                return
        try:
            async with asyncio.timeout(IDLE_S):
                await self._wake[kind].wait()
        except TimeoutError:
            pass

    async def _run(self, held: work.Claim, release: Pinned, lane: Lane) -> None:
        opened = tracing.start(f"job {held.kind}", held.request.get("trace", ""), held.created, job=held.job_id)
        errand = errand_of(held, tracing.name_of(opened))
        beat: dict[str, Any] = {"step": "waiting for a replica", "progress": 0.0}
        keeping = asyncio.create_task(self._hold(held, beat))
        try:
            outcome = await self._outcome(held, release, errand, lane, beat)
        finally:
            keeping.cancel()
            opened.end()
        if outcome is None:
            await asyncio.to_thread(work.give_back, self._records, held)
            return
        await asyncio.to_thread(self._publish, held, errand, outcome)
        await self._ends.add()
        if self._candidate is not None and "result" in outcome:
            self._candidate.offer(held.kind, release, errand, outcome["result"])

    async def _outcome(
        self, held: work.Claim, release: Pinned, errand: Errand, lane: Lane, beat: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The replica's last word; None when the replica was lost."""
        outcome: dict[str, Any] = {}
        worker = self._workers[held.kind].options(stream=True)
        messages: AsyncIterator[dict[str, Any]] = worker.run.remote(held.kind, release, errand)  # type: ignore[assignment]
        try:
            # The replica's own clock begins with its first word: until then it may be busy, or only just starting.
            async with asyncio.timeout(None) as patience:
                async for outcome in messages:
                    if "step" in outcome:
                        beat.update(outcome)
                        if patience.when() is None:
                            now = asyncio.get_running_loop().time()
                            patience.reschedule(now + lane.deadline_s + PATIENCE_S)
        except TimeoutError:
            return {"problem": document("deadline", 504, "the job took longer than the server allows")}
        except RayError:
            log.warning("replica_lost", job=held.job_id, attempt=held.attempt)
            return None
        return outcome if "step" not in outcome else None

    async def _hold(self, held: work.Claim, beat: dict[str, Any]) -> None:
        """Renews the lease while the replica works, or while none is free yet."""
        counts = True
        while counts:
            # A database that is away for a moment does not end the attempt: the lease outlasts several tries.
            with contextlib.suppress(SQLAlchemyError):
                counts = await asyncio.to_thread(work.renew, self._records, held, beat["step"], beat["progress"])
            await asyncio.sleep(RENEW_EVERY_S)

    def _publish(self, held: work.Claim, errand: Errand, outcome: dict[str, Any]) -> None:
        self._metrics.job(held.kind, outcome, time.time() - held.created)
        if "result" in outcome:
            counted = work.succeed(self._records, held, outcome["result"], outcome["files"])
        else:
            counted = False
            work.fail(self._records, held, outcome["problem"])
        if not counted:
            self._shelf.erase(errand.out)
            return
        for attempt in range(1, held.attempt):
            self._shelf.erase(attempt_key(held, attempt))
        if held.kind == "plan":
            for _ in range(self._settings.guide.replicas):
                self._workers["guide"].preload.remote(errand.out)


def errand_of(held: work.Claim, trace: str) -> Errand:
    """What a replica needs to know of a claimed job."""
    request = held.request
    return Errand(
        job_id=held.job_id,
        images=request["images"],
        options=request["options"],
        out=attempt_key(held, held.attempt),
        plan_folder=request.get("plan_folder"),
        previous_folder=request.get("previous_folder"),
        trace=trace,
    )


def attempt_key(held: work.Claim, attempt: int) -> str:
    """Where an attempt leaves its results."""
    return f"cases/{held.case_id}/jobs/{held.job_id}/attempt-{attempt}"
