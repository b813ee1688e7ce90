"""moto's S3 behind a proxy that drops connections, answers 503 and cuts bodies short, over real HTTP."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from hepalign.cases import s3

SKIP_HEADERS = {"transfer-encoding", "connection", "content-length", "date", "server"}


class FlakyS3:
    """A proxy before moto. `faults` holds (method, key ending, what); each is spent by the first request it fits.

    What: `503`, `drop` (half of the body, then the connection ends), `refuse` (the connection ends before an answer).
    """

    def __init__(self, backend: int) -> None:
        self.backend = backend
        self.faults: list[tuple[str, str, str]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, path: str) -> str | None:
        with self._lock:
            for fault in self.faults:
                if fault[0] == method and path.partition("?")[0].endswith(fault[1]):
                    self.faults.remove(fault)
                    return fault[2]
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FlakyS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self._body()
        self.proxy.requests.append((self.command, self.path, dict(self.headers)))
        fault = self.proxy.fault(self.command, self.path)
        if fault == "refuse":
            self.close_connection = True
            return
        if fault == "503":
            self._answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
            return
        backend = http.client.HTTPConnection("127.0.0.1", self.proxy.backend)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in SKIP_HEADERS}
        backend.request(self.command, self.path, body, headers)
        answer = backend.getresponse()
        data = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in SKIP_HEADERS]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self._answer(answer.status, kept, data, cut=fault == "drop", length=length)

    def _body(self) -> bytes:
        # urllib3 waits for 100-continue, which the base class sends before this is called
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815


@contextmanager
def flaky_s3() -> Iterator[FlakyS3]:
    """A running proxy and its moto server."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy = FlakyS3(server.get_host_and_port()[1])
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()


@contextmanager
def bucket(name: str) -> Iterator[FlakyS3]:
    """A bucket behind the proxy, and the surroundings that lead this process and its children to it."""
    with flaky_s3() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3.client.cache_clear()
        s3.client().create_bucket(Bucket=name)
        yield proxy
    s3.client.cache_clear()
