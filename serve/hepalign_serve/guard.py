"""What every request passes before a route sees it: ids, bounds, headers of the answer, one error shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hepalign_serve import problems
from hepalign_serve.metrics import Seen
from hepalign_serve.problems import RequestError
from hepalign_serve.settings import Limits

MAX_HEADERS = 100
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
            await self._app(scope, exchange.receive, exchange.send)
        except RequestError as error:
            await exchange.answer(problems.from_error(error))
        except Exception:
            log.exception("unexpected", request_id=exchange.request_id)
            await exchange.answer(
                problems.response("internal", 500, "something unexpected; the log has the request id")
            )
        finally:
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        seconds = time.perf_counter() - exchange.began
        self._observe((method, route, exchange.status, seconds, exchange.taken))
        log.info(
            "request",
            request_id=exchange.request_id,
            method=method,
            route=route,
            status=exchange.status,
            ms=round(1000 * seconds, 1),
            bytes_in=exchange.taken,
        )


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
