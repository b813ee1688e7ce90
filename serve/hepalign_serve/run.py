"""Starts and stops the service: Ray, Serve, the database, the first token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from hepalign.errors import UsageError, WorkFailedError
from hepalign_serve import schema, sites
from hepalign_serve.deployments import compose
from hepalign_serve.records import Records
from hepalign_serve.settings import Settings, load_settings
from hepalign_serve.shelf import FOLDERS

if TYPE_CHECKING:
    from hepalign_serve.pipeline import Pipeline

LOCAL_SITE = "local"
APPLICATION = "hepalign"
PROXY_READY_S = 60
CONTROL_LOOP_S = 0.5
REMOVALS = 5
_ENDING = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class Server:
    """A running service; `token` is the first site's key, known only when this start made it."""

    url: str
    token: str | None
    settings: Settings
    ray_folder: Path | None
    owns_ray: bool

    def stop(self) -> None:
        """Ends the service, and Ray where `start` started it."""
        serve.shutdown()  # type: ignore[no-untyped-call]
        if self.owns_ray:
            ray.shutdown()
        # Ray's daemons may still be writing their last lines.
        for _ in range(REMOVALS if self.ray_folder else 0):
            shutil.rmtree(str(self.ray_folder), ignore_errors=True)
            time.sleep(0.1)


def start(settings: Settings, *, pipeline: Pipeline | None = None, ready_s: float = 300.0) -> Server:
    """Boots Serve with the release of the settings and blocks until it is ready.

    Args:
        settings: `load_settings` makes them from a YAML file.
        pipeline: what replicas compute; the paper's chain by default.
        ready_s: how long the release may take to be warm.

    Raises:
        WorkFailedError: `not_ready` when the service is not ready in time.
    """
    settings = _settled(settings)
    if settings.ray_address == "local":
        _require_free(settings.host, settings.port)
    records = prepare(settings)
    token = None if sites.list_sites(records) else sites.add_site(records, LOCAL_SITE)
    records.engine.dispose()
    owns_ray = not ray.is_initialized()
    ray_folder = _start_ray(settings) if owns_ray else None
    serve.start(http_options=_http(settings))
    serve.run(
        compose(settings, pipeline),
        name=APPLICATION,
        route_prefix="/",
        logging_config={"enable_access_log": False, "log_level": settings.log_level.upper()},
    )
    scheme = "https" if settings.tls else "http"
    server = Server(f"{scheme}://{settings.host}:{settings.port}", token, settings, ray_folder, owns_ray)
    _await_ready(server, ready_s)
    return server


def _http(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"host": settings.host, "port": settings.port, "request_timeout_s": 900}
    if settings.tls is not None:
        options |= {"ssl_certfile": str(settings.tls.certificate), "ssl_keyfile": str(settings.tls.key)}
    return options


def _settled(settings: Settings) -> Settings:
    port = settings.port or _free_port(settings.host)
    metrics_port = settings.metrics_port or _free_port("127.0.0.1")
    found = {"data_folder": settings.data_folder.resolve(), "port": port, "metrics_port": metrics_port}
    return settings.model_copy(update=found)


def prepare(settings: Settings) -> Records:
    """Makes the data folder, and brings the database to this version's tables."""
    settings.data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in FOLDERS:
        (settings.data_folder / name).mkdir(exist_ok=True)
    records = Records(settings.database)
    schema.upgrade(records.engine)
    return records


def _start_ray(settings: Settings) -> Path | None:
    """Starts Ray, or joins the cluster of the settings; the folder to remove afterwards."""
    # Whoever reaches Ray's ports runs code. Ray guards a cluster of its own with the token that it finds here;
    # RAY_AUTH_MODE is read when ray is imported, so setting it now would split driver and daemons.
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Serve gives its proxy 5 s to come up and kills it otherwise: too short on a busy machine.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_READY_S))
    # Ten looks a second at what is deployed take a twentieth of a core from the computing.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", str(CONTROL_LOOP_S))
    # Ray's workers run at nice 15 by default; a procedure must not wait behind whatever else the machine does.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A replica computes on threads, and one with an arena of its own maps every large volume anew.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    if settings.ray_address != "local":
        ray.init(address=settings.ray_address, log_to_driver=False)
        return None
    # Unix sockets end at 107 characters: Ray's folder has a short name.
    folder = Path(tempfile.mkdtemp(prefix="hep"))
    ray.init(
        address="local",
        _temp_dir=str(folder),
        num_cpus=settings.ray_cpus,
        include_dashboard=False,
        log_to_driver=False,
    )
    return folder


def _await_ready(server: Server, ready_s: float) -> None:
    # The certificate, where there is one, names the hospital's host and not the loopback address asked here.
    trust = ssl._create_unverified_context() if server.settings.tls else None  # noqa: S323
    until = time.monotonic() + ready_s
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=5, context=trust):  # noqa: S310 (our own)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    server.stop()
    message = f"the service was not ready within {ready_s:g} s: look at its log for the release's fault"
    raise WorkFailedError(message, code="not_ready")


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"port {port} of {host} cannot be taken: set another `port`, or end what has it"
            raise UsageError(message, code="port_taken") from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(settings: Settings, *, pipeline: Pipeline | None = None) -> Iterator[Server]:
    """A running service for the length of a block, with a valid token in hand whatever the database held before."""
    server = start(settings, pipeline=pipeline)
    try:
        yield server if server.token else replace(server, token=_fresh_token(server.settings))
    finally:
        server.stop()


def serve_forever(*, release: str | None = None, config: Path | None = None) -> None:
    """`hepalign serve`: starts, tells the address (and the first token, once), stays until interrupted."""
    settings = load_settings(config) if config is not None else Settings()
    if release is not None:
        settings = settings.model_copy(update={"release": release})
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    server = start(settings)
    try:
        # On the embedded defaults one person starts it to use it: every start hands out a token.
        token = server.token or (_fresh_token(server.settings) if config is None else None)
        _say(f"serving at {server.url} (the viewer is there too)")
        if token is not None:
            _say(f"token of the site '{LOCAL_SITE}', shown this once: {token}")
        signal.sigwait(_ENDING)
    finally:
        server.stop()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _fresh_token(settings: Settings) -> str:
    records = Records(settings.database)
    try:
        known = [entry["site"] for entry in sites.list_sites(records)]
        return sites.rotate(records, LOCAL_SITE) if LOCAL_SITE in known else sites.add_site(records, LOCAL_SITE)
    finally:
        records.engine.dispose()
