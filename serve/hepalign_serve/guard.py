"""What every request passes before a route sees it: ids, bounds, headers of the answer, one error shape."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hepalign_serve import problems, tracing
from hepalign_serve.metrics import Seen
from hepalign_serve.problems import RequestError
from hepalign_serve.settings import Limits

MAX_HEADERS = 100
_TRACE_PARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
UPLOAD_PATHS = ("/images/", "/uploads/")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY.encode()),
]

log = structlog.get_logger("hepalign_serve")
Observe = Callable[[Seen], None]


class Guard:
    """ASGI middleware. Neither the path as sent nor any header or body goes to the log: only the route's pattern."""

    def __init__(self, app: ASGIApp, limits: Limits, observe: Observe) -> None:
        self._app = app
        self._limits = limits
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            exchange.check()
            with tracing.span("request", exchange.trace_parent(), request_id=exchange.request_id) as opened:
                scope["state"]["trace"] = tracing.name_of(opened)
                await self._app(scope, exchange.receive, exchange.send)
                opened.update_name(f"{_method(scope)} {_route(scope)}")
                opened.set_attribute("http.response.status_code", exchange.status)
        except RequestError as error:
            scope["state"]["code"] = error.code
            await exchange.answer(problems.from_error(error))
        except Exception:
            scope["state"]["code"] = "internal"
            log.exception("unexpected", request_id=exchange.request_id)
            await exchange.answer(
                problems.response("internal", 500, "something unexpected; the log has the request id")
            )
        finally:
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        method, route, code = _method(scope), _route(scope), scope["state"].get("code", "")
        seconds = time.perf_counter() - exchange.began
        self._observe((method, route, exchange.status, seconds, exchange.taken, code))
        log.info(
            "request",
            request_id=exchange.request_id,
            method=method,
            route=route,
            status=exchange.status,
            code=code,
            ms=round(1000 * seconds, 1),
            bytes_in=exchange.taken,
        )


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"


class _Exchange:
    """One request and its answer, counted."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.request_id = secrets.token_hex(8)
        self.began = time.perf_counter()
        self.status = 0
        self.taken = 0
        self._scope, self._receive, self._send = scope, receive, send
        uploads = any(part in scope["path"] for part in UPLOAD_PATHS) and scope["method"] == "PUT"
        self._cap = limits.upload_bytes if uploads else limits.json_bytes
        scope.setdefault("state", {})["request_id"] = self.request_id

    def check(self) -> None:
        headers = self._scope["headers"]
        if len(headers) > MAX_HEADERS:
            raise RequestError("too many headers", code="too_many_headers", status=400)
        length = dict(headers).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._cap:
            raise self._too_large()

    def trace_parent(self) -> str:
        """The caller's W3C traceparent, if it sent one that is hexadecimal."""
        sent = dict(self._scope["headers"]).get(b"traceparent", b"").decode("ascii", "replace")
        return sent if _TRACE_PARENT.fullmatch(sent) else ""

    async def receive(self) -> Message:
        message = await self._receive()
        self.taken += len(message.get("body", b""))
        if self.taken > self._cap:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = {name for name, _ in message["headers"]}
            extra = [(name, value) for name, value in _SECURITY if name not in named]
            message["headers"] = [*message["headers"], *extra, (b"hepalign-request-id", self.request_id.encode())]
        await self._send(message)

    async def answer(self, response: ASGIApp) -> None:
        if self.status == 0:
            await response(self._scope, self.receive, self.send)

    def _too_large(self) -> RequestError:
        return RequestError(f"the body may have {self._cap} bytes at most", code="too_large", status=413)
