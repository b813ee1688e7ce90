"""Leases: whatever dies, one attempt's result counts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hepalign.cases.store import Shelf
from hepalign_serve import housekeeping, work
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Artifact, Job, Records
from hepalign_serve.settings import Limits
from hepalign_serve.task import LeftFile

pytestmark = pytest.mark.usefixtures("one_case")


def add(records: Records, kind: work.Kind = "guide", limits: Limits | None = None) -> str:
    with records.write() as session:
        return work.submit(session, site="a", case="case", kind=kind, request={}, limits=limits or Limits()).id


def expire(records: Records, job: str) -> None:
    with records.write() as session:
        session.get_one(Job, job).lease_until = time.time() - 1


def state(records: Records, job: str) -> Job:
    with records.read() as session:
        return session.get_one(Job, job)


def test_oldest_first_and_lanes_apart(records: Records) -> None:
    plan, first, second = add(records, "plan"), add(records), add(records)
    taken = [work.claim(records, "guide", 2) for _ in range(3)]
    assert [held.job_id if held else None for held in taken] == [first, second, None]
    held = work.claim(records, "plan", 2)
    assert held is not None
    assert held.job_id == plan


def test_a_lost_attempt_does_not_count(records: Records) -> None:
    job = add(records)
    lost = work.claim(records, "guide", 2)
    assert lost is not None
    expire(records, job)
    again = work.claim(records, "guide", 2)
    assert again is not None
    assert again.attempt == 2
    left = [LeftFile("result.json", "p", "0", 1)]
    assert not work.renew(records, lost, "late", 0.9)
    assert not work.succeed(records, lost, {"from": "lost"}, left)
    assert work.succeed(records, again, {"from": "again"}, left)
    assert not work.fail(records, lost, {"code": "late"})
    assert state(records, job).result == {"from": "again"}
    with records.read() as session:
        assert session.query(Artifact).count() == 1


def test_attempts_end(records: Records) -> None:
    job = add(records)
    for _ in range(2):
        assert work.claim(records, "guide", 2) is not None
        expire(records, job)
    assert work.claim(records, "guide", 2) is None
    problem = state(records, job).problem
    assert problem is not None
    assert (problem["code"], problem["status"]) == ("replica_lost", 503)


def test_queue_bounds_and_position(records: Records) -> None:
    limits = Limits(site_queued_jobs=2, queued_jobs=3)
    jobs = [add(records, limits=limits) for _ in range(2)]
    with pytest.raises(RequestError) as error:
        add(records, limits=limits)
    assert (error.value.code, error.value.status) == ("too_many_jobs", 429)
    with records.read() as session:
        assert [work.queue_position(session, session.get_one(Job, job)) for job in jobs] == [0, 1]
    assert work.queue_lengths(records) == {"plan": 0, "guide": 2}


def test_many_takers_take_each_job_once(records: Records) -> None:
    jobs = [add(records, limits=Limits(site_queued_jobs=99, queued_jobs=99)) for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda _: work.claim(records, "guide", 2), range(16)))
    held = [claim.job_id for claim in taken if claim is not None]
    assert len(held) == len(set(held))
    # skipping what another taker holds may leave a job for the next round, never take one twice
    while (claim := work.claim(records, "guide", 2)) is not None:
        held.append(claim.job_id)
    assert sorted(held) == sorted(jobs)


def test_erasing_a_case_takes_everything_of_it(records: Records, tmp_path: Path) -> None:
    job = add(records)
    held = work.claim(records, "guide", 2)
    assert held is not None
    (tmp_path / "cases" / "case").mkdir(parents=True)
    housekeeping.erase(records, Shelf(tmp_path), "case")
    assert not work.renew(records, held, "late", 0.5)
    assert not work.succeed(records, held, {}, [LeftFile("result.json", "p", "0", 1)])
    with records.read() as session:
        assert session.get(Job, job) is None
        assert session.query(Artifact).count() == 0
