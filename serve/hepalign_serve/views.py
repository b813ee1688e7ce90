"""Rows as the API shows them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hepalign_serve import work
from hepalign_serve.records import Artifact, Job
from hepalign_serve.schemas import JobView


def job_view(session: Session, job: Job) -> JobView:
    """A job with its place in the queue and the time it should still take."""
    position = work.queue_position(session, job)
    artifacts = session.scalars(select(Artifact.name).where(Artifact.job_id == job.id).order_by(Artifact.name))
    return JobView(
        id=job.id,
        case=job.case_id,
        kind="plan" if job.kind == "plan" else "guide",
        state=job.state,
        attempt=job.attempt,
        step=job.step,
        progress=job.progress,
        queue_position=position,
        eta_s=_eta_s(session, job, position),
        created=job.created,
        started=job.started,
        finished=job.finished,
        result=job.result,
        problem=job.problem,
        artifacts=list(artifacts),
    )


def as_json(view: JobView) -> dict[str, Any]:
    """The view as JSON values."""
    return view.model_dump(mode="json")


def _eta_s(session: Session, job: Job, position: int) -> float | None:
    if job.state not in work.UNFINISHED:
        return 0.0
    typical = work.typical_s(session, job.kind)
    if typical is None:
        return None
    gone = time.time() - job.started if job.state == work.RUNNING and job.started else 0.0
    return round(max(0.0, typical * (position + 1) - gone), 1)
