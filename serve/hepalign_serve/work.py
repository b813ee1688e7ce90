"""The jobs table: who may take a job, for how long, and what counts as its one result."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from hepalign_serve.problems import busy, document, not_found
from hepalign_serve.records import Artifact, Image, Job, Records
from hepalign_serve.settings import Limits
from hepalign_serve.task import LeftFile

Kind = Literal["plan", "guide"]
QUEUED, RUNNING, SUCCEEDED, FAILED = "queued", "running", "succeeded", "failed"
UNFINISHED = (QUEUED, RUNNING)
LEASE_S = 15.0


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job, and what it needs."""

    job_id: str
    case_id: str
    site_id: str
    kind: Kind
    attempt: int
    request: dict[str, Any]
    created: float


def submit(session: Session, *, site: str, case: str, kind: Kind, request: dict[str, Any], limits: Limits) -> Job:
    """Adds a queued job.

    Raises:
        RequestError: 429 `too_many_jobs` for the site, 503 `queue_full` for all, both with Retry-After.
    """
    waiting = select(func.count()).select_from(Job).where(Job.state == QUEUED)
    if session.scalar(waiting.where(Job.site_id == site)) >= limits.site_queued_jobs:  # type: ignore[operator]
        raise busy("this site has as many jobs waiting as it may", "too_many_jobs", 429)
    if session.scalar(waiting) >= limits.queued_jobs:  # type: ignore[operator]
        raise busy("the queue is full", "queue_full", 503)
    job = Job(
        id=secrets.token_hex(12), case_id=case, site_id=site, kind=kind, state=QUEUED, request=request,
        attempt=0, lease_until=0.0, step="queued", progress=0.0, created=time.time(),
        started=None, finished=None, result=None, problem=None,
    )  # fmt: skip
    session.add(job)
    return job


def claim(records: Records, kind: Kind, attempts: int) -> Claim | None:
    """Takes the oldest job of a lane that is waiting or whose lease ran out; None when there is none.

    A job whose attempts are used up fails here with `replica_lost`.
    """
    now = time.time()
    with records.write() as session:
        open_to_take = or_(Job.state == QUEUED, (Job.state == RUNNING) & (Job.lease_until < now))
        oldest = select(Job).where(Job.kind == kind, open_to_take).order_by(Job.created).limit(1)
        job = session.scalars(oldest.with_for_update(skip_locked=True)).first()
        if job is None:
            return None
        if job.attempt >= attempts:
            _finish(job, FAILED, problem=document("replica_lost", 503, "the work was lost: send it again"))
            return None
        job.state, job.attempt, job.lease_until = RUNNING, job.attempt + 1, now + LEASE_S
        job.step, job.progress, job.started = "starting", 0.0, now
        return Claim(job.id, job.case_id, job.site_id, kind, job.attempt, job.request, job.created)


def renew(records: Records, held: Claim, step: str, progress: float) -> bool:
    """Keeps the lease and notes the progress; False when this attempt does not count any more."""
    with records.write() as session:
        values = {"lease_until": time.time() + LEASE_S, "step": step, "progress": progress}
        return bool(session.execute(_if_held(held).values(**values)).rowcount)  # type: ignore[attr-defined]


def give_back(records: Records, held: Claim) -> None:
    """Puts an interrupted attempt back at once, instead of waiting for its lease to run out."""
    with records.write() as session:
        session.execute(_if_held(held).values(state=QUEUED, step="queued", progress=0.0, lease_until=0.0))


def succeed(records: Records, held: Claim, result: dict[str, Any], files: Sequence[LeftFile]) -> bool:
    """Publishes the attempt's result; False (and nothing is published) when another attempt counts."""
    with records.write() as session:
        job = _held(session, held)
        if job is None:
            return False
        _finish(job, SUCCEEDED, result=result)
        session.add_all(
            Artifact(job_id=job.id, case_id=job.case_id, name=f.name, path=f.path, sha256=f.sha256,
                     bytes_stored=f.bytes_stored)
            for f in files
        )  # fmt: skip
        return True


def fail(records: Records, held: Claim, problem: dict[str, Any]) -> bool:
    """Ends the job with its problem document."""
    with records.write() as session:
        job = _held(session, held)
        if job is not None:
            _finish(job, FAILED, problem=problem)
        return job is not None


def find(session: Session, site: str, job_id: str) -> Job:
    """The site's own job.

    Raises:
        RequestError: 404 `not_found`, also for another site's job.
    """
    job = session.get(Job, job_id)
    if job is None or job.site_id != site:
        raise not_found()
    return job


def latest(session: Session, case_id: str, kind: Kind, *states: str) -> Job | None:
    """The case's newest job of a kind in one of these states."""
    rows = select(Job).where(Job.case_id == case_id, Job.kind == kind, Job.state.in_(states))
    return session.scalars(rows.order_by(Job.created.desc()).limit(1)).first()


def queue_position(session: Session, job: Job) -> int:
    """How many jobs of its lane go first; 0 once it runs."""
    if job.state != QUEUED:
        return 0
    ahead = select(func.count()).select_from(Job)
    ahead = ahead.where(Job.kind == job.kind, Job.state.in_(UNFINISHED), Job.created < job.created)
    return session.scalar(ahead) or 0


def queue_lengths(records: Records) -> dict[str, int]:
    """Jobs waiting in each lane."""
    counts = select(Job.kind, func.count()).where(Job.state == QUEUED).group_by(Job.kind)
    with records.read() as session:
        return {"plan": 0, "guide": 0, **{row[0]: row[1] for row in session.execute(counts)}}


def typical_s(session: Session, kind: str) -> float | None:
    """Mean running time of the lane's last twenty successes; None before the first."""
    last = select(Job.finished - Job.started).where(Job.kind == kind, Job.state == SUCCEEDED)
    times = [t for t in session.scalars(last.order_by(Job.finished.desc()).limit(20)) if t is not None]
    return sum(times) / len(times) if times else None


def stored_bytes(session: Session, site: str, cases: Any) -> int:
    """What the site's images, those that newer ones replaced, and its results take."""
    own = select(cases.id).where(cases.site_id == site)
    images = session.scalar(select(func.sum(Image.bytes_stored)).where(Image.case_id.in_(own)))
    results = session.scalar(select(func.sum(Artifact.bytes_stored)).where(Artifact.case_id.in_(own)))
    replaced = session.scalar(select(func.sum(cases.replaced_bytes)).where(cases.site_id == site))
    return int(images or 0) + int(results or 0) + int(replaced or 0)


def _if_held(held: Claim) -> Any:
    return update(Job).where(Job.id == held.job_id, Job.state == RUNNING, Job.attempt == held.attempt)


def _held(session: Session, held: Claim) -> Job | None:
    job = session.get(Job, held.job_id, with_for_update=True)
    return job if job is not None and job.state == RUNNING and job.attempt == held.attempt else None


def _finish(
    job: Job, state: str, *, result: dict[str, Any] | None = None, problem: dict[str, Any] | None = None
) -> None:
    job.state, job.step, job.finished = state, state, time.time()
    job.progress = 1.0 if state == SUCCEEDED else job.progress
    job.result, job.problem = result, problem
