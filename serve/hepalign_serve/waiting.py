"""The jobs that answers wait for, looked at all together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Set

from sqlalchemy import select, tuple_, update

from hepalign_serve import work
from hepalign_serve.records import IdempotencyKey, Job, Records

# An answer's key is its own for so long; while somebody waits it is renewed.
ANSWERING_S = 5.0
RENEW_EVERY_S = ANSWERING_S / 3
# Site and digest, as the key is kept.
KeyId = tuple[str, str]
# `Ends.after`, or a way to it.
NextEnd = Callable[[int], Awaitable[int]]
# A request whose job ended unseen (its desk died) looks at the database after so long.
UNSEEN_S = 1.0


class Ends:
    """Counts the jobs that ended here, for those who wait for the next one."""

    def __init__(self) -> None:
        self._count, self._another = 0, asyncio.Condition()

    async def add(self) -> None:
        """A job has ended."""
        async with self._another:
            self._count += 1
            self._another.notify_all()

    async def after(self, seen: int) -> int:
        """The count once it is not `seen`, or after `UNSEEN_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNSEEN_S), self._another:
                await self._another.wait_for(lambda: self._count != seen)
        return self._count


class Waiting:
    """Wakes requests when their jobs end; one per ingress replica.

    The desk says that some job ended; which ones, and whether they count, only the database knows.
    """

    def __init__(self, records: Records, next_end: NextEnd) -> None:
        self._records = records
        self._next_end = next_end
        self._seen = -1
        self._waiting: dict[asyncio.Future[None], tuple[str, KeyId]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def ended(self, job_id: str, key: KeyId, wait_s: float) -> None:
        """Returns when a job has ended, or after `wait_s`; meanwhile its key stays with this answer.

        Raises:
            SQLAlchemyError: the database does not say.
        """
        if wait_s <= 0:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = job_id, key
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await future
        finally:
            del self._waiting[future]

    async def _look(self) -> None:
        renewed = time.monotonic()
        while self._waiting:
            asked = dict(self._waiting)
            try:
                ended = await asyncio.to_thread(self._ended, {job_id for job_id, _ in asked.values()})
                open_keys = {key for job_id, key in asked.values() if job_id not in ended}
                if open_keys and time.monotonic() - renewed > RENEW_EVERY_S:
                    renewed = time.monotonic()
                    await asyncio.to_thread(self._renew, open_keys)
            except Exception as error:  # noqa: BLE001 - whoever waits answers with it
                for future in asked:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future, (job_id, _) in asked.items():
                    if job_id in ended and not future.done():
                        future.set_result(None)
            self._seen = await self._next_end(self._seen)

    def _ended(self, job_ids: Set[str]) -> Set[str]:
        """Those that do not run any more; an erased job has ended as well."""
        unfinished = select(Job.id).where(Job.id.in_(job_ids), Job.state.in_(work.UNFINISHED))
        with self._records.read() as session:
            return job_ids - set(session.scalars(unfinished))

    def _renew(self, keys: Set[KeyId]) -> None:
        rows = update(IdempotencyKey).where(tuple_(IdempotencyKey.site_id, IdempotencyKey.key).in_(keys))
        with self._records.write() as session:
            session.execute(rows.values(answering_until=time.time() + ANSWERING_S))
