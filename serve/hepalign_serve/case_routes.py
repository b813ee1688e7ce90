"""Cases: open, fill, list, erase."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hepalign.errors import BadInputError
from hepalign.image.nifti_header import Orientation
from hepalign_serve import housekeeping, images, uploads, work
from hepalign_serve.context import BySite, Caller, Context, InContext
from hepalign_serve.payload import Received, receive
from hepalign_serve.problems import RequestError, busy, not_found
from hepalign_serve.records import Artifact, CaseRow, Image, Job
from hepalign_serve.schemas import CaseLine, Cases, CaseView, Complete, ImageRole, ImageView, NewCase, PartsView
from hepalign_serve.vault import check_same_patient
from hepalign_serve.views import job_view

router = APIRouter(prefix="/v1/cases", tags=["cases"])


def _wishes(
    orientation: Orientation = "auto", drop_localizers: bool = False, resample_tilt: bool = False
) -> images.Wishes:
    return images.Wishes(orientation, drop_localizers, resample_tilt)


Wished = Annotated[images.Wishes, Depends(_wishes)]


@router.post("", status_code=201, summary="Open a case")
async def open_case(caller: BySite, context: InContext, response: Response, body: NewCase | None = None) -> CaseView:
    """The new case, empty."""
    case_id = secrets.token_hex(12)
    await context.record(caller, "open", case_id)
    row = await context.writing(lambda session: _open(session, caller.site, case_id, context))
    await context.storing((context.shelf.folder / "cases" / case_id).mkdir)
    response.headers["Location"] = f"/v1/cases/{case_id}"
    return CaseView(id=row.id, created=row.created, images=[], jobs=[], artifacts=[])


@router.get("", summary="The site's own cases")
async def list_cases(caller: BySite, context: InContext) -> Cases:
    """Newest first."""
    await context.record(caller, "list", "cases")
    own = select(CaseRow).where(CaseRow.site_id == caller.site).order_by(CaseRow.created.desc())
    rows = await context.reading(lambda session: list(session.scalars(own)))
    return Cases(cases=[CaseLine(id=row.id, created=row.created) for row in rows])


@router.get("/{case_id}", summary="One case with its images, jobs and artifacts")
async def show_case(case_id: str, caller: BySite, context: InContext) -> CaseView:
    """The case as it stands."""
    row = await context.own_case(caller, case_id, "show")
    return await context.reading(lambda session: _case_view(session, row))


@router.delete("/{case_id}", status_code=204, summary="Erase a case")
async def erase_case(case_id: str, caller: BySite, context: InContext) -> None:
    """Removes images, results and records; the audit line stays."""
    await context.own_case(caller, case_id, "erase")
    await context.storing(lambda: housekeeping.erase(context.records, context.shelf, case_id))


@router.put("/{case_id}/images/{role}", status_code=201, summary="Upload an image")
async def put_image(
    case_id: str, role: ImageRole, request: Request, caller: BySite, context: InContext, wishes: Wished
) -> ImageView:
    """NIfTI bytes or a DICOM zip; for `ict-probe-mask` also a JSON box or polygon."""
    await context.own_case(caller, case_id, "upload")
    await _within_quota(context, caller)
    received = await receive(request, context.data_folder / "incoming", context.settings.limits)
    return await _store(context, received, case_id, role, request.headers.get("content-type", ""), wishes)


@router.get("/{case_id}/images/{role}", summary="Get an image back", response_class=FileResponse)
async def get_image(
    case_id: str, role: ImageRole, caller: BySite, context: InContext, job: str | None = None
) -> FileResponse:
    """The newest image, or the one that `job` used, as it is used: NIfTI (JSON for a probe mask that came so)."""
    await context.own_case(caller, case_id, "download")
    stored = await context.reading(lambda session: _image_path(session, case_id, role.replace("-", "_"), job))
    path = await _fetched(context, stored)
    return FileResponse(path, filename=role + path.name[path.name.index(".") :])


@router.put("/{case_id}/uploads/{role}/{part}", status_code=201, summary="Send one chunk of an image")
async def put_part(
    case_id: str, role: ImageRole, part: int, request: Request, caller: BySite, context: InContext
) -> PartsView:
    """Chunks are numbered from 0; one sent again replaces itself."""
    await context.own_case(caller, case_id, "upload")
    await _within_quota(context, caller)
    folder = uploads.folder_of(context.data_folder, case_id, role)
    uploads.check_part(part, context.settings.limits)
    await context.storing(lambda: folder.mkdir(parents=True, exist_ok=True))
    received = await receive(request, folder, context.settings.limits)
    return PartsView(parts=await asyncio.to_thread(uploads.keep, received, folder, part, context.settings.limits))


@router.get("/{case_id}/uploads/{role}", summary="Which chunks have come")
async def show_parts(case_id: str, role: ImageRole, caller: BySite, context: InContext) -> PartsView:
    """The chunks that need not be sent again."""
    await context.own_case(caller, case_id, "upload")
    return PartsView(parts=uploads.parts(uploads.folder_of(context.data_folder, case_id, role)))


@router.post("/{case_id}/uploads/{role}/complete", status_code=201, summary="Put the chunks together")
async def complete(
    case_id: str, role: ImageRole, body: Complete, caller: BySite, context: InContext, wishes: Wished
) -> ImageView:
    """Checks the whole against its SHA-256 and stores the image."""
    await context.own_case(caller, case_id, "upload")
    folder = uploads.folder_of(context.data_folder, case_id, role)
    received = await asyncio.to_thread(
        uploads.join, folder, body.parts, body.sha256, context.data_folder / "incoming", context.settings.limits
    )
    view = await _store(context, received, case_id, role, body.content_type, wishes)
    await asyncio.to_thread(shutil.rmtree, folder, True)
    return view


@router.get("/{case_id}/artifacts/{name}", summary="Download a result", response_class=FileResponse)
async def artifact(
    case_id: str,
    name: str,
    caller: BySite,
    context: InContext,
    job: str | None = None,
    as_format: Annotated[Literal["dicom"] | None, Query(alias="format")] = None,
) -> Response:
    """A result of the newest plan or guide, or of `job`; `format=dicom`: a zip filed under the iCT's patient."""
    await context.own_case(caller, case_id, "download")
    found = await context.reading(lambda session: _artifact(session, case_id, name, job))
    path = await _fetched(context, found.path)
    if as_format is None:
        status = await context.reading(lambda session: _status(session, found.job_id))
        shown = f"REJECTED-{found.name}" if status == "reject" else found.name
        return FileResponse(path, filename=shown, headers={"ETag": f'"{found.sha256}"', "Hepalign-Quality": status})
    ict, result = await context.reading(lambda session: _dicom_context(session, found))
    packed = await context.storing(lambda: _as_dicom(context, path, ict, result))
    disposition = {"Content-Disposition": f'attachment; filename="{found.name.partition(".")[0]}.zip"'}
    return Response(packed, media_type="application/zip", headers=disposition)


def _image_path(session: Session, case_id: str, role: str, job_id: str | None) -> str:
    if job_id is not None:
        job = session.get(Job, job_id)
        found = job.request["images"].get(role) if job is not None and job.case_id == case_id else None
    else:
        image = session.get(Image, (case_id, role))
        found = image.path if image is not None else None
    if found is None:
        raise not_found()
    return str(found)


def _status(session: Session, job_id: str) -> str:
    """The verdict on the job that left an artifact: a file that is passed on must not lose it."""
    job = session.get_one(Job, job_id)
    return str((job.result or {}).get("quality", {}).get("status", "unknown"))


async def _fetched(context: Context, key: str) -> Path:
    try:
        return await context.storing(lambda: context.shelf.fetch(key))
    except BadInputError as error:
        raise not_found() from error


def _dicom_context(session: Session, found: Artifact) -> tuple[str, dict[str, Any]]:
    """The iCT that the job used, whatever was sent since, and what the job says of its result."""
    job = session.get_one(Job, found.job_id)
    used = job.request["images"].get("ict")
    if used is None:
        raise _no_dicom_context()
    return str(used), job.result or {}


def _as_dicom(context: Context, path: Path, ict: str, result: dict[str, Any]) -> bytes:
    # highdicom takes a second to import: only who asks for DICOM waits for it.
    from hepalign_serve.dicom_out import export

    sealed, _ = images.beside(Path(ict))
    try:
        header = context.shelf.fetch(str(sealed))
    except BadInputError as error:
        raise _no_dicom_context() from error
    return export(path.name, path, result, context.vault.open(header))


def _no_dicom_context() -> RequestError:
    message = "the iCT did not come as DICOM: ask without format=dicom"
    return RequestError(message, code="no_dicom_context", status=422)


def _open(session: Session, site: str, case_id: str, context: Context) -> CaseRow:
    count = select(func.count()).select_from(CaseRow).where(CaseRow.site_id == site)
    if (session.scalar(count) or 0) >= context.settings.limits.open_cases:
        raise busy("this site has as many cases as it may: erase some", "too_many_cases", 429)
    row = CaseRow(id=case_id, site_id=site, created=time.time(), touched=time.time())
    session.add(row)
    return row


async def _within_quota(context: Context, caller: Caller) -> None:
    own = select(CaseRow.id).where(CaseRow.site_id == caller.site)
    used = await context.reading(lambda session: work.stored_bytes(session, caller.site, CaseRow))
    cases = await context.reading(lambda session: list(session.scalars(own)))
    used += await asyncio.to_thread(uploads.stored_bytes, context.data_folder, cases)
    if used >= context.settings.limits.site_bytes:
        raise busy("this site's storage is full: erase some cases", "quota_reached", 429)


async def _store(
    context: Context, received: Received, case_id: str, role: str, content_type: str, wishes: images.Wishes
) -> ImageView:
    # A sender that hangs up does not stop it half-way: the files stay with their row, or neither does.
    return await asyncio.shield(_accept(context, received, case_id, role.replace("-", "_"), content_type, wishes))


async def _accept(
    context: Context, received: Received, case_id: str, name: str, content_type: str, wishes: images.Wishes
) -> ImageView:
    shelf = context.shelf
    image, known = await asyncio.to_thread(
        images.accept, received, shelf, case_id, name, content_type, wishes, context.vault
    )
    try:
        whose = await context.reading(lambda session: session.get(Image, (case_id, name.partition("_")[0])))
        if whose is not None and whose.role != name:
            await context.storing(lambda: images.check_on(image, whose, shelf))
        await context.writing(lambda session: _replace(session, case_id, image, known))
    except BaseException:
        # A commit whose answer was lost counts: what a row names stays.
        kept = await context.reading(lambda session: session.get(Image, (case_id, name)))
        if not known and (kept is None or kept.path != image.path):
            await context.storing(lambda: images.discard(image.path, shelf))
        raise
    return _image_view(image)


def _replace(session: Session, case_id: str, image: Image, known: bool) -> None:
    case = session.get(CaseRow, case_id, with_for_update=True)
    if case is None:
        raise not_found()
    others = session.scalars(select(Image).where(Image.case_id == case_id, Image.role != image.role))
    check_same_patient(image.facts, [other.facts for other in others])
    case.touched = time.time()
    earlier = session.get(Image, (case_id, image.role))
    if earlier is not None and earlier.path != image.path:
        # Jobs may use the earlier one: it stays and counts, and one that comes back counts once.
        back = image.bytes_stored if known else 0
        case.replaced_bytes = max(0, case.replaced_bytes + earlier.bytes_stored - back)
    session.merge(image)


def _case_view(session: Session, row: CaseRow) -> CaseView:
    pictures = session.scalars(select(Image).where(Image.case_id == row.id).order_by(Image.role))
    jobs = session.scalars(select(Job).where(Job.case_id == row.id).order_by(Job.created))
    names = session.scalars(select(Artifact.name).where(Artifact.job_id.in_(_newest_jobs(session, row.id))).distinct())
    return CaseView(
        id=row.id,
        created=row.created,
        images=[_image_view(image) for image in pictures],
        jobs=[job_view(session, job) for job in jobs],
        artifacts=sorted(names),
    )


def _image_view(image: Image) -> ImageView:
    facts = image.facts
    return ImageView(
        role=image.role.replace("_", "-"),
        sha256=image.sha256,
        shape=facts.get("shape"),
        spacing_mm=facts.get("spacing_mm"),
        dicom="dicom" in facts,
        warnings=facts.get("warnings", []),
    )


def _artifact(session: Session, case_id: str, name: str, job_id: str | None) -> Artifact:
    jobs = _newest_jobs(session, case_id) if job_id is None else [job_id]
    rows = select(Artifact).join(Job, Job.id == Artifact.job_id)
    rows = rows.where(Artifact.case_id == case_id, Artifact.name == name, Artifact.job_id.in_(jobs))
    found = session.scalars(rows.order_by(Job.finished.desc()).limit(1)).first()
    if found is None:
        raise not_found()
    return found


def _newest_jobs(session: Session, case_id: str) -> list[str]:
    """The newest plan and guide that succeeded: what an earlier one left and they withheld is no result any more."""
    kinds: tuple[work.Kind, ...] = ("plan", "guide")
    newest = [work.latest(session, case_id, kind, work.SUCCEEDED) for kind in kinds]
    return [job.id for job in newest if job is not None]
