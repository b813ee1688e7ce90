"""Requests that wait for jobs: told at once, together, on both databases."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import delete, event
from sqlalchemy.exc import OperationalError

from hepalign_serve import waiting, work
from hepalign_serve.records import IdempotencyKey, Job, Records
from hepalign_serve.settings import Limits
from hepalign_serve.waiting import Ends, Waiting

pytestmark = pytest.mark.usefixtures("one_case")


def add(records: Records, key: str) -> str:
    with records.write() as session:
        job = work.submit(session, site="a", case="case", kind="guide", request={}, limits=Limits()).id
        session.add(
            IdempotencyKey(site_id="a", key=key, fingerprint="", case_id="case", job_id=job, answering_until=0.0,
                           answer=None, created=0.0)
        )  # fmt: skip
        return job


def finish(records: Records) -> None:
    held = work.claim(records, "guide", 1)
    assert held is not None
    assert work.succeed(records, held, {}, [])


def test_each_is_told_when_its_own_job_ends(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "UNSEEN_S", 60.0)
    jobs = [add(records, key) for key in "xy"]

    async def both() -> list[float]:
        ends = Ends()
        waits = Waiting(records, ends.after)
        began = time.monotonic()

        async def one(job: str, key: str) -> float:
            await waits.ended(job, ("a", key), 30)
            return time.monotonic() - began

        first, second = (asyncio.create_task(one(job, key)) for job, key in zip(jobs, "xy", strict=True))
        await asyncio.sleep(0.2)
        assert not first.done()
        await asyncio.to_thread(finish, records)
        await ends.add()
        told = [await first]
        await asyncio.sleep(0.3)
        assert not second.done()
        await asyncio.to_thread(finish, records)
        await ends.add()
        return [*told, await second]

    first_s, second_s = asyncio.run(both())
    assert first_s < second_s < 5


def test_a_job_that_ended_unseen_is_found_soon(records: Records) -> None:
    job = add(records, "x")

    async def waits() -> float:
        waiting_for = asyncio.create_task(Waiting(records, Ends().after).ended(job, ("a", "x"), 30))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(finish, records)
        began = time.monotonic()
        await waiting_for
        return time.monotonic() - began

    assert asyncio.run(waits()) < 5


def test_the_count_of_another_desk_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "UNSEEN_S", 60.0)

    async def after_a_restart() -> int:
        async with asyncio.timeout(5):
            return await Ends().after(57)

    assert asyncio.run(after_a_restart()) == 0


def test_a_wait_ends_by_itself_and_an_erased_job_at_once(records: Records) -> None:
    job = add(records, "x")

    async def waits() -> tuple[float, float]:
        looking, spans = Waiting(records, Ends().after), []
        for seconds in (0.3, 30.0):
            began = time.monotonic()
            await looking.ended(job, ("a", "x"), seconds)
            spans.append(time.monotonic() - began)
            with records.write() as session:
                session.execute(delete(Job))
        return spans[0], spans[1]

    timed_out_s, erased_s = asyncio.run(waits())
    assert 0.3 <= timed_out_s < 5
    assert erased_s < 5


def test_a_key_stays_with_the_answer_that_waits(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "RENEW_EVERY_S", 0.05)
    monkeypatch.setattr(waiting, "UNSEEN_S", 0.05)
    jobs = {key: add(records, key) for key in ("waited", "other")}
    begun = time.time()

    def until(key: str) -> float:
        with records.read() as session:
            return session.get_one(IdempotencyKey, ("a", key)).answering_until

    async def renewed() -> None:
        waits = asyncio.create_task(Waiting(records, Ends().after).ended(jobs["waited"], ("a", "waited"), 60))
        while until("waited") < begun and not waits.done():
            await asyncio.sleep(0.05)
        waits.cancel()

    asyncio.run(renewed())
    assert until("waited") > begun
    assert until("other") == 0.0


def test_a_database_that_is_away_is_said_to_whoever_waits(records: Records) -> None:
    job = add(records, "x")

    def refuse(*_: object) -> None:
        raise OperationalError("select", {}, Exception("away"))

    async def asked() -> None:
        event.listen(records.engine, "before_cursor_execute", refuse)
        try:
            with pytest.raises(OperationalError):
                await Waiting(records, Ends().after).ended(job, ("a", "x"), 30)
        finally:
            event.remove(records.engine, "before_cursor_execute", refuse)

    asyncio.run(asked())
