"""What the routes share: who asks, what is theirs, and the line in the audit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from hepalign_serve.problems import RequestError, busy, not_found
from hepalign_serve.records import CaseRow, Job, Records
from hepalign_serve.settings import Settings
from hepalign_serve.shelf import open_shelf, storing
from hepalign_serve.sites import Gate
from hepalign_serve.vault import Vault
from hepalign_serve.waiting import Waiting

T = TypeVar("T")


class DeskClient(Protocol):
    """The desk as the routes see it: the audit's only writer and the jobs' dispatcher."""

    async def record(self, **line: str) -> None:
        """Appends to the audit or raises 503."""
        ...

    async def admit(self, site: str) -> bool:
        """Counts a request against the site's rate."""
        ...

    async def wake(self) -> None:
        """There is new work."""
        ...

    async def next_end(self, seen: int) -> int:
        """How many jobs have ended, once it is not `seen` any more, or after a moment; it never raises."""
        ...

    async def status(self) -> dict[str, Any]:
        """What is served."""
        ...


@dataclass(frozen=True)
class Caller:
    """An authenticated site, the id of its request and the request's span."""

    site: str
    request_id: str
    trace: str = ""


class Context:
    """The application's shared objects; one per ingress replica."""

    def __init__(self, settings: Settings, desk: DeskClient) -> None:
        self.settings = settings
        self.desk = desk
        self.records = Records(settings.database)
        self.shelf = open_shelf(settings)
        self.vault = Vault(settings.identity_key)
        self.waiting = Waiting(self.records, desk.next_end)
        self.gate = Gate(self.records, settings.oidc)

    @property
    def data_folder(self) -> Path:
        """The working folder of this machine."""
        return self.settings.data_folder

    async def caller(self, request: Request) -> Caller:
        """Authenticates a request and counts it."""
        site = await asyncio.to_thread(self.gate.site, request.headers.get("authorization"))
        if not await self.desk.admit(site):
            raise busy("this site asks too often", "rate_limited", 429)
        return Caller(site, request.state.request_id, request.state.trace)

    async def reading(self, query: Callable[[Session], T]) -> T:
        """Runs a query off the event loop."""

        def run() -> T:
            with self.records.read() as session:
                return query(session)

        return await asyncio.to_thread(run)

    async def writing(self, change: Callable[[Session], T]) -> T:
        """Runs a transaction off the event loop."""

        def run() -> T:
            with self.records.write() as session:
                return change(session)

        return await asyncio.to_thread(run)

    async def storing(self, change: Callable[[], T]) -> T:
        """Works with files off the event loop; 503 or 507 when the store refuses."""

        def run() -> T:
            with storing():
                return change()

        return await asyncio.to_thread(run)

    async def record(self, caller: Caller, action: str, target: str, outcome: str = "allowed") -> None:
        """The audit's line; 503 when it cannot be written."""
        await self.desk.record(
            site=caller.site, action=action, target=target, outcome=outcome, request_id=caller.request_id
        )

    async def own_case(self, caller: Caller, case_id: str, action: str, *, audited: bool = True) -> CaseRow:
        """The site's own case; anyone else's answers exactly as an unknown one, and both are audited."""
        row = await self.reading(lambda session: session.get(CaseRow, case_id))
        if row is None or row.site_id != caller.site:
            raise await self._refused(caller, row, case_id, action)
        if audited:
            await self.record(caller, action, case_id)
        return row

    async def own_job(self, caller: Caller, job_id: str, action: str) -> Job:
        """The site's own job, likewise; only refusals are audited, as clients poll."""
        row = await self.reading(lambda session: session.get(Job, job_id))
        if row is None or row.site_id != caller.site:
            raise await self._refused(caller, row, job_id, action)
        return row

    async def _refused(self, caller: Caller, row: object, target: str, action: str) -> RequestError:
        # An id that does not exist is the caller's text: it may say anything, so only its length is kept.
        await self.record(caller, action, target if row is not None else f"unknown({len(target)})", "not_found")
        return not_found()


def context_of(request: Request) -> Context:
    """The application's context."""
    context: Context = request.app.state.context
    return context


async def caller_of(request: Request) -> Caller:
    """FastAPI's dependency for the authenticated site."""
    return await context_of(request).caller(request)


InContext = Annotated[Context, Depends(context_of)]
BySite = Annotated[Caller, Depends(caller_of)]
