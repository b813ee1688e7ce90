"""The edge in front of the running service: a real nginx with the shipped configuration, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from certificates import make_certificate
from served import Served, in_background, problem, replicas

Call = Callable[..., httpx2.Response]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def edge(root: Path, folder: Path, upstream: str) -> Iterator[Call]:
    """nginx before an upstream; yields a caller that trusts its certificate only."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    make_certificate(folder / "tls")
    port = free_port()
    shipped = (root / "infra/edge/nginx.conf").read_text(encoding="utf-8")
    for own, here in (
        ("serve:8000", upstream),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/tmp/", f"{folder}/"),
        ("client_max_body_size 512m", "client_max_body_size 1m"),
    ):
        assert own in shipped
        shipped = shipped.replace(own, here)
    (folder / "nginx.conf").write_text(shipped, encoding="utf-8")
    words = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        client = httpx2.Client(base_url=f"https://localhost:{port}", verify=str(folder / "tls/edge.crt"), timeout=60)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.1)
        with client:
            yield client.request
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def call(served: Served, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    with edge(root, tmp_path_factory.mktemp("edge"), f"127.0.0.1:{served.settings.port}") as caller:
        yield caller


def test_calls_pass_over_tls(served: Served, call: Call) -> None:
    answer = call("GET", "/v1/cases", headers={"Authorization": f"Bearer {served.token}"})
    assert answer.status_code == 200
    assert "strict-transport-security" in answer.headers
    problem(call("GET", "/v1/cases"), 401, "unauthorised")


def test_the_services_own_refusals_pass_as_they_are(served: Served, call: Call) -> None:
    headers = {"Authorization": f"Bearer {served.token}"}
    problem(call("POST", "/v1/cases", json={"site_id": "x"}, headers=headers), 422, "invalid_request")
    blocked = served.settings.anchor.with_suffix(".partial")
    blocked.mkdir()
    try:
        problem(call("POST", "/v1/cases", json={}, headers=headers), 503, "audit_unavailable")
    finally:
        blocked.rmdir()


def test_fault_57_headers_are_bounded(call: Call) -> None:
    assert call("GET", "/healthz", headers={f"x-{i}": "y" * 100 for i in range(10_000)}).status_code == 400


def test_fault_54_body_is_bounded(call: Call) -> None:
    problem(call("PUT", "/v1/cases/x/images/ict", content=b"\0" * (2 << 20)), 413, "too_large")


def test_fault_64_an_ingress_that_dies_in_a_request(served: Served, call: Call) -> None:
    """The caller gets a problem document, comes back with the same key, and finds its job."""
    case = served.newly_planned_case()
    headers = {"Authorization": f"Bearer {served.token}", "Idempotency-Key": f"edge-{case}", "Prefer": "wait=20"}

    def guide() -> httpx2.Response:
        return call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"}, headers=headers)

    with served.held("guide"):
        waiting = in_background(guide)
        while not [job for job in served.call("GET", f"/v1/cases/{case}").json()["jobs"] if job["kind"] == "guide"]:
            time.sleep(0.2)
        for pid in replicas(served, "Ingress"):
            os.kill(pid, signal.SIGKILL)
        problem(waiting(), 503, "replica_lost")
    for _ in range(60):
        try:
            answer = guide()
        except httpx2.TimeoutException:
            continue  # while another ingress starts
        if answer.status_code == 200:
            break
        assert answer.status_code in (202, 409, 503)
        time.sleep(1)
    assert answer.json()["attempt"] == 1


def test_fault_64_lost_service_is_a_problem_document(root: Path, tmp_path: Path) -> None:
    with edge(root, tmp_path, f"127.0.0.1:{free_port()}") as caller:
        problem(caller("GET", "/v1/cases"), 503, "replica_lost")


def test_fault_64_a_bare_500_is_a_problem_document(root: Path, tmp_path: Path) -> None:
    """What Ray Serve's proxy says when the ingress dies within a request."""
    with socket.create_server(("127.0.0.1", 0)) as dying:
        port = dying.getsockname()[1]
        with edge(root, tmp_path, f"127.0.0.1:{port}") as caller:

            def answer() -> None:
                line, _ = dying.accept()
                line.recv(4096)
                line.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\noops!")
                line.close()

            threading.Thread(target=answer, daemon=True).start()
            problem(caller("GET", "/v1/cases"), 503, "replica_lost")
