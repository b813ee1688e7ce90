"""Jobs: plan, guide, and how they are getting on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import Response

from hepalign_serve import problems, work
from hepalign_serve.context import BySite, Caller, Context, InContext
from hepalign_serve.problems import RequestError, busy, not_found
from hepalign_serve.records import Artifact, CaseRow, IdempotencyKey, Image, Job
from hepalign_serve.schemas import GuideRequest, JobView, PlanRequest
from hepalign_serve.views import as_json, job_view
from hepalign_serve.waiting import ANSWERING_S, KeyId

router = APIRouter(prefix="/v1", tags=["jobs"])

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")
_PLAN_NEEDS = ("pmr", "pct")
_GUIDE_NEEDS = ("ict", "ict_probe_mask")

Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]
Prefer = Annotated[str | None, Header(max_length=200)]


@dataclass(frozen=True)
class _Order:
    """What the caller wants done, and the key it stands under."""

    caller: Caller
    case_id: str
    kind: work.Kind
    body: PlanRequest | GuideRequest
    key: str

    @property
    def key_id(self) -> KeyId:
        """The key as it is kept, by its digest: a caller's text may say anything."""
        return self.caller.site, hashlib.sha256(self.key.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Equal for equal orders."""
        content = json.dumps([self.case_id, self.kind, self.body.model_dump()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@router.post("/cases/{case_id}/plan", status_code=202, summary="Plan a case", response_model=JobView)
async def plan(
    case_id: str, caller: BySite, context: InContext, body: PlanRequest | None = None,
    idempotency_key: Key = None, prefer: Prefer = None,
) -> Response:  # fmt: skip
    """Registers pMR to pCT; the answer is the job (its finished state when `Prefer: wait` was long enough)."""
    return await _order(context, caller, case_id, "plan", body or PlanRequest(engine=None), idempotency_key, prefer)


@router.post("/cases/{case_id}/guide", summary="Guide with the newest iCT", response_model=JobView)
async def guide(
    case_id: str, caller: BySite, context: InContext, body: GuideRequest | None = None,
    idempotency_key: Key = None, prefer: Prefer = None,
) -> Response:  # fmt: skip
    """Brings MR, CT and labels onto the iCT: 200 within `Prefer: wait=N` seconds, else 202 and the job goes on."""
    order = body or GuideRequest(engine="refine", budget_s=None, plan=None, previous=None)
    return await _order(context, caller, case_id, "guide", order, idempotency_key, prefer)


@router.get("/jobs/{job_id}", summary="Where a job stands")
async def show_job(job_id: str, caller: BySite, context: InContext) -> JobView:
    """State, progress, place in the queue, time left, result or problem."""
    job = await context.own_job(caller, job_id, "job")
    return await context.reading(lambda session: job_view(session, job))


@router.get("/jobs/{job_id}/events", summary="A job's state as server-sent events", response_class=StreamingResponse)
async def job_events(job_id: str, caller: BySite, context: InContext) -> StreamingResponse:
    """One `state` event a change, until the job ends."""
    await context.own_job(caller, job_id, "job")
    return StreamingResponse(_events(context, job_id), media_type="text/event-stream")


async def _order(
    context: Context, caller: Caller, case_id: str, kind: work.Kind, body: PlanRequest | GuideRequest,
    key: str | None, prefer: str | None,
) -> Response:  # fmt: skip
    if not key:
        raise RequestError("send an Idempotency-Key", code="idempotency_key_required", status=400)
    await context.own_case(caller, case_id, kind)
    order = _Order(caller, case_id, kind, body, key)
    try:
        job_id, replay = await context.writing(lambda session: _take(session, order, context))
    except IntegrityError:
        # The same key came twice at once and the other one was first: now it is known.
        job_id, replay = await context.writing(lambda session: _take(session, order, context))
    if replay is not None:
        return JSONResponse(replay["body"], replay["status"], replay["headers"], replay["media_type"])
    try:
        await context.desk.wake()
        await context.waiting.ended(job_id, order.key_id, _wait_s(prefer, context))
        view = await context.reading(lambda session: _current(session, job_id))
        answer = _answer(view)
        await context.writing(lambda session: _remember(session, order, answer))
    except BaseException:
        # The sender is gone: the next call with this key finds the job at once.
        await asyncio.shield(context.writing(lambda session: _free(session, order)))
        raise
    return JSONResponse(answer["body"], answer["status"], answer["headers"], answer["media_type"])


def _take(session: Session, order: _Order, context: Context) -> tuple[str, dict[str, Any] | None]:
    site, now = order.caller.site, time.time()
    known = session.get(IdempotencyKey, order.key_id)
    if known is None:
        request = _plan_input(session, order) if order.kind == "plan" else _guide_input(session, order)
        request["trace"] = order.caller.trace
        limits = context.settings.limits
        job = work.submit(session, site=site, case=order.case_id, kind=order.kind, request=request, limits=limits)
        _touch(session, order.case_id)
        known = IdempotencyKey(
            site_id=site, key=order.key_id[1], fingerprint=order.fingerprint, case_id=order.case_id, job_id=job.id,
            answering_until=now + ANSWERING_S, answer=None, created=now,
        )  # fmt: skip
        session.add(known)
        return job.id, None
    if known.fingerprint != order.fingerprint:
        raise RequestError("this Idempotency-Key stands for another request", code="idempotency_mismatch", status=422)
    if known.answer is None and known.answering_until > now:
        raise busy("the first request with this key is still being answered", "idempotency_in_flight", 409, 1)
    known.answering_until = now + ANSWERING_S
    return known.job_id, known.answer


def _plan_input(session: Session, order: _Order) -> dict[str, Any]:
    images = _images(session, order.case_id, _PLAN_NEEDS, ("pmr_", "pct_"))
    return {"images": images, "options": order.body.model_dump(exclude_none=True)}


def _guide_input(session: Session, order: _Order) -> dict[str, Any]:
    assert isinstance(order.body, GuideRequest)
    images = _images(session, order.case_id, _GUIDE_NEEDS, ("ict_",))
    options = order.body.model_dump(exclude_none=True, exclude={"plan", "previous"})
    folders = {"plan_folder": _plan_folder(session, order)}
    if order.body.previous is not None:
        folders["previous_folder"] = _folder_of(session, _finished(session, order, order.body.previous, "guide"))
    return {"images": images, "options": options} | folders


def _images(session: Session, case_id: str, needed: tuple[str, ...], also: tuple[str, ...]) -> dict[str, str]:
    rows = session.scalars(select(Image).where(Image.case_id == case_id))
    paths = {row.role: row.path for row in rows if row.role in needed or row.role.startswith(also)}
    missing = [role.replace("_", "-") for role in needed if role not in paths]
    if missing:
        raise RequestError(f"upload first: {', '.join(missing)}", code="image_missing", status=409)
    return paths


def _plan_folder(session: Session, order: _Order) -> str:
    assert isinstance(order.body, GuideRequest)
    if order.body.plan is not None:
        return _folder_of(session, _finished(session, order, order.body.plan, "plan"))
    newest = work.latest(session, order.case_id, "plan", work.SUCCEEDED)
    if newest is None:
        raise busy("the plan is not ready", "plan_not_ready", 409)
    return _folder_of(session, newest)


def _finished(session: Session, order: _Order, job_id: str, kind: str) -> Job:
    job = session.get(Job, job_id)
    if job is None or job.case_id != order.case_id or job.kind != kind:
        raise not_found()
    if job.state != work.SUCCEEDED:
        raise busy(f"the {kind} is not ready", f"{kind}_not_ready", 409)
    return job


def _folder_of(session: Session, job: Job) -> str:
    path = session.scalars(select(Artifact.path).where(Artifact.job_id == job.id).limit(1)).one()
    return path.rpartition("/")[0]


def _touch(session: Session, case_id: str) -> None:
    case = session.get(CaseRow, case_id)
    if case is None:
        raise not_found()
    case.touched = time.time()


def _current(session: Session, job_id: str) -> JobView:
    job = session.get(Job, job_id)
    if job is None:
        raise not_found()
    return job_view(session, job)


def _answer(view: JobView) -> dict[str, Any]:
    headers = {"Location": f"/v1/jobs/{view.id}"}
    if view.state == work.FAILED and view.problem is not None:
        status = view.problem["status"]
        if status in (429, 503):
            headers["Retry-After"] = str(problems.RETRY_AFTER_S)
        body: dict[str, Any] = view.problem | {"job": view.id}
        return {"status": status, "headers": headers, "body": body, "media_type": problems.MEDIA_TYPE}
    status = 200 if view.state == work.SUCCEEDED else 202
    return {"status": status, "headers": headers, "body": as_json(view), "media_type": "application/json"}


def _remember(session: Session, order: _Order, answer: dict[str, Any]) -> None:
    known = session.get(IdempotencyKey, order.key_id)
    if known is not None:
        known.answer, known.answering_until = answer, 0.0


def _free(session: Session, order: _Order) -> None:
    known = session.get(IdempotencyKey, order.key_id)
    if known is not None:
        known.answering_until = 0.0


def _wait_s(prefer: str | None, context: Context) -> float:
    match = _WAIT.search(prefer or "")
    return min(float(match[1]), context.settings.limits.wait_s) if match else 0.0


async def _events(context: Context, job_id: str) -> AsyncIterator[str]:
    last, silent_s = "", 0.0
    while True:
        try:
            view = await context.reading(lambda session: _current(session, job_id))
        except RequestError:
            return
        text = json.dumps(as_json(view), separators=(",", ":"))
        if text != last:
            last, silent_s = text, 0.0
            yield f"event: state\ndata: {text}\n\n"
        if view.state not in work.UNFINISHED:
            return
        await asyncio.sleep(0.3)
        silent_s += 0.3
        if silent_s > 10:
            silent_s = 0.0
            yield ": still here\n\n"
