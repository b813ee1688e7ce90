"""The replica that speaks HTTP, and the desk as it sees it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from hepalign.errors import HepalignError
from hepalign_serve import logs, tracing
from hepalign_serve.metrics import Seen
from hepalign_serve.problems import busy
from hepalign_serve.settings import Settings

TELL_EVERY_S = 1.0
DESK_TIMEOUT_S = 10.0
ADMIT_TIMEOUT_S = 1.0
WITHOUT_DESK_S = 0.25


class Ingress:
    """Speaks HTTP; holds no state of its own."""

    def __init__(self, settings: Settings, desk: DeploymentHandle[Any]) -> None:
        logs.configure("Ingress", settings.data_folder, settings.log_level)
        tracing.configure("Ingress", settings.traces)
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

    async def admit(self, site: str) -> bool:
        """See `DeskClient`."""
        try:
            admitted: bool = (await self._call("admit", ADMIT_TIMEOUT_S, site=site))["admitted"]
        except HepalignError:
            # While the desk comes back, reading goes on; whatever changes something waits for the audit anyway.
            return True
        return admitted

    async def wake(self) -> None:
        """See `DeskClient`."""
        with contextlib.suppress(HepalignError):
            await self._call("wake")

    async def next_end(self, seen: int) -> int:
        """See `DeskClient`."""
        try:
            ended: int = (await self._call("next_end", seen=seen))["ended"]
        except HepalignError:
            # While the desk comes back the database is asked instead, now and then.
            await asyncio.sleep(WITHOUT_DESK_S)
            return seen
        return ended

    async def status(self) -> dict[str, Any]:
        """See `DeskClient`."""
        status: dict[str, Any] = await self._call("status")
        return status

    async def _call(self, method: str, timeout_s: float = DESK_TIMEOUT_S, /, **words: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await getattr(self._handle, method).remote(**words)
        except Exception as error:
            raise busy("the desk cannot be reached", "desk_unavailable", 503) from error
        if answer and "problem" in answer:
            problem = answer["problem"]
            raise busy(problem["detail"], problem["code"], problem["status"])
        return answer
