"""The desk's side of shadow mode: which candidate, when it may run, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from hepalign.cases.store import Shelf
from hepalign.errors import HepalignError
from hepalign_serve import work
from hepalign_serve.metrics import Metrics
from hepalign_serve.records import Records
from hepalign_serve.releases import pin
from hepalign_serve.settings import Settings
from hepalign_serve.task import Errand, Pinned

log = structlog.get_logger("hepalign_serve")


class Candidate:
    """Offers finished jobs to the shadow replica; under any load the offer is dropped."""

    def __init__(
        self, settings: Settings, records: Records, shelf: Shelf, metrics: Metrics, shadow: DeploymentHandle[Any]
    ) -> None:
        self._settings = settings
        self._records = records
        self._shelf = shelf
        self._metrics = metrics
        self._shadow = shadow
        self._release: Pinned | None = None
        self._running: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        """Looks at the alias once and warms what it finds; it need not have passed the gate."""
        try:
            found = await asyncio.to_thread(pin, self._settings.candidate, self._shelf, verify=False)
            if self._release is None or found.digest != self._release.digest:
                answer = await self._shadow.warm.remote(found)
                if "error" in answer:
                    raise answer["error"]
                self._release = found
                log.info("shadowing", name=found.name, version=found.version, digest=found.digest)
        except HepalignError as error:
            self._release = None
            log.warning("candidate_refused", code=error.code)
        await asyncio.sleep(self._settings.release_poll_s)

    def offer(self, kind: work.Kind, served: Pinned, errand: Errand, result: Mapping[str, Any]) -> None:
        """A job that was just answered with the served release."""
        candidate = self._release
        if candidate is None or candidate.digest == served.digest:
            return
        if self._running is not None and not self._running.done():
            self._metrics.shadow(kind, "dropped")
            return
        self._running = asyncio.create_task(self._run(kind, candidate, served, errand, result))

    async def _run(
        self, kind: work.Kind, candidate: Pinned, served: Pinned, errand: Errand, result: Mapping[str, Any]
    ) -> None:
        if any((await asyncio.to_thread(work.queue_lengths, self._records)).values()):
            self._metrics.shadow(kind, "dropped")
            return
        own = replace(errand, out=f"shadow/{errand.job_id}", trace="")
        try:
            found = await self._shadow.compare.remote(kind, candidate, own, errand.out)
        except RayError:
            found = {"problem": "replica_lost"}
        status = result.get("quality", {}).get("status")
        agrees = "agrees" if found.get("status") == status else "differs"
        outcome = "failed" if "problem" in found else agrees
        self._metrics.shadow(kind, outcome, found.get("difference_mm"))
        log.info(
            "shadow", job=errand.job_id, kind=kind, outcome=outcome, served=served.version, served_status=status,
            candidate=candidate.version, candidate_digest=candidate.digest, **found,
        )  # fmt: skip
