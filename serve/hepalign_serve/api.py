"""The HTTP application: every route of the contract, one error shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hepalign.errors import HepalignError
from hepalign_serve import case_routes, job_routes, problems, viewer
from hepalign_serve.context import BySite, Context, DeskClient, InContext
from hepalign_serve.guard import Guard, Observe
from hepalign_serve.schemas import Problem, ReleaseView
from hepalign_serve.settings import Settings

log = structlog.get_logger("hepalign_serve")

_ERRORS = {
    "4XX": {"model": Problem, "content": {problems.MEDIA_TYPE: {}}, "description": "see the code"},
    "5XX": {"model": Problem, "content": {problems.MEDIA_TYPE: {}}, "description": "see the code"},
}


def create_app(settings: Settings, desk: DeskClient, observe: Observe = lambda *_: None) -> FastAPI:
    """The application of one ingress replica."""
    app = FastAPI(
        title="Hepalign",
        version="1",
        description="MR-CT registration for liver ablation. Research use only.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        responses=_ERRORS,  # type: ignore[arg-type]
    )
    app.state.context = Context(settings, desk)
    app.add_middleware(Guard, limits=settings.limits, observe=observe)
    app.add_exception_handler(HepalignError, _on_error)
    for lost in (OperationalError, InterfaceError):
        app.add_exception_handler(lost, _on_database)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.include_router(case_routes.router)
    app.include_router(job_routes.router)
    _add_probes(app)
    if settings.viewer:
        app.include_router(viewer.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.context.records.engine.dispose()


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="A release is warm and the stores are there")
    async def readyz(context: InContext) -> dict[str, str]:
        try:
            await context.reading(lambda session: session.execute(text("select 1")))
        except Exception as error:
            raise problems.busy("the database cannot be reached", "not_ready", 503) from error
        try:
            await context.storing(lambda: context.shelf.check("cases"))
        except HepalignError as error:
            raise problems.busy("the store cannot be reached", "not_ready", 503) from error
        if (await context.desk.status())["release"] is None:
            raise problems.busy("no release is warm yet", "not_ready", 503)
        return {"status": "ready"}

    @app.get("/v1/release", summary="What is served")
    async def release(caller: BySite, context: InContext) -> ReleaseView:
        serving = (await context.desk.status())["release"]
        if serving is None:
            raise problems.busy("no release is warm yet", "not_ready", 503)
        networks = {name: {"sha256": sha256} for name, sha256 in serving["networks"].items()}
        return ReleaseView(
            name=serving["name"], version=serving["version"], digest=serving["digest"], networks=networks
        )


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HepalignError)
    request.state.code = error.code
    return problems.from_error(error)


async def _on_database(request: Request, error: Exception) -> JSONResponse:
    # A database that restarts is back in a moment: whoever asked may ask again.
    log.warning("database_unavailable", request_id=request.state.request_id, reason=type(error).__name__)
    request.state.code = "database_unavailable"
    return problems.response("database_unavailable", 503, "the database cannot be reached")


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Values and unknown keys as sent may hold patient data: only the schema's own names and the rules go back.
    wrong = [f"{_place(found)}: {found['type']}" for found in error.errors()[:5]]
    malformed = any(e["type"] == "json_invalid" for e in error.errors())
    request.state.code = "bad_json" if malformed else "invalid_request"
    if malformed:
        return problems.response("bad_json", 400, "the body is not JSON")
    return problems.response("invalid_request", 422, "; ".join(wrong))


def _place(found: Mapping[str, Any]) -> str:
    place = found["loc"][:-1] if found["type"] == "extra_forbidden" else found["loc"]
    return ".".join(str(part) for part in place)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    request.state.code = code
    detail = "there is no such thing here" if error.status_code == 404 else str(error.detail)
    return problems.response(code, error.status_code, detail, headers=error.headers)
