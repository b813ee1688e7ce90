"""RFC 9457 problem documents: the one shape of every error that leaves the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from hepalign.errors import HepalignError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5


class RequestError(HepalignError):
    """The request cannot be served as it came; `headers` go out with the answer."""

    default_status = 400

    def __init__(
        self, message: str, *, code: str, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.headers = dict(headers or {})


def not_found() -> RequestError:
    """The one answer to an unknown id and to another site's id."""
    return RequestError("there is no such thing here", code="not_found", status=404)


def busy(message: str, code: str, status: int, after_s: int = RETRY_AFTER_S) -> RequestError:
    """A refusal (429, 503, 409) that asks to come back."""
    return RequestError(message, code=code, status=status, headers={"Retry-After": str(after_s)})


def document(code: str, status: int, detail: str, **more: Any) -> dict[str, Any]:
    """The JSON of a problem; `code` is stable, `detail` is for people."""
    head = {"type": f"urn:hepalign:problem:{code}", "title": code.replace("_", " ")}
    return head | {"status": status, "code": code, "detail": detail} | more


def response(
    code: str, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A problem as an HTTP answer; 429 and 503 always say when to come back."""
    out = dict(headers or {})
    if status in (429, 503):
        out.setdefault("Retry-After", str(RETRY_AFTER_S))
    if status == 401:
        out.setdefault("WWW-Authenticate", "Bearer")
    return JSONResponse(document(code, status, detail, **more), status, out, MEDIA_TYPE)


def from_error(error: HepalignError) -> JSONResponse:
    """The answer to a raised error."""
    headers = error.headers if isinstance(error, RequestError) else None
    return response(error.code, error.status, error.message, headers=headers)
