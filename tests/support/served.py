"""A really running server for tests: Ray Serve in a process of its own, small untrained networks, a phantom case."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from hepalign.image.geometry import Geometry
from hepalign.image.nifti import write_nifti
from hepalign.image.volume import Volume
from hepalign_serve import sites
from hepalign_serve.client import Client
from hepalign_serve.records import Records
from hepalign_serve.settings import Settings

SHAPE = (40, 40, 32)
OTHER_SITE = "other"
HELD = "held"  # as the obedient server knows it


class Spans:
    """An OpenTelemetry collector on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        kept: list[Span] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(sent) if self.headers.get("content-encoding") == "gzip" else sent
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    kept.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.kept = kept
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Issuer:
    """An identity provider's key, and the settings that trust it."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / "issuer.pem").write_bytes(self._key.public_key().public_bytes(*form))
        self.settings = {"issuer": "idp", "audience": "hepalign", "public_key_file": str(folder / "issuer.pem")}

    def token(self, site: str, *, key: Any = "", algorithm: str = "ES256", **other: Any) -> str:
        """A JWT for a site, with any claim overwritten."""
        claims = {"iss": "idp", "aud": "hepalign", "exp": time.time() + 60, "hepalign_site": site} | other
        return jwt.encode(claims, self._key if key == "" else key, algorithm=algorithm)


@dataclass
class Served:
    """The running server and what tests need to talk to it."""

    url: str
    token: str
    settings: Settings
    pid: int
    control: Path
    images: Mapping[str, Path]
    other_token: str
    release: Path
    spans: Spans
    issuer: Issuer
    _plans: list[str] = field(default_factory=list)

    @property
    def data_folder(self) -> Path:
        return self.settings.data_folder

    @property
    def records(self) -> Records:
        return Records(self.settings.database)

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token or self.token)

    def call(self, method: str, path: str, *, token: str | None = "", **words: Any) -> httpx2.Response:
        """One bare HTTP call; `token=None` sends none."""
        headers = dict(words.pop("headers", {}))
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token or self.token}")
        return httpx2.request(method, self.url + path, headers=headers, timeout=120, **words)

    def put(self, case: str, role: str, content: bytes, **headers: str) -> httpx2.Response:
        return self.call("PUT", f"/v1/cases/{case}/images/{role}", content=content, headers=headers)

    def order(self, step: str, do: str, *, seconds: float = 0.0, times: int = 1) -> None:
        """What the pipeline's next call of a step does."""
        (self.control / step).write_text(json.dumps({"do": do, "seconds": seconds, "times": times}), encoding="utf-8")

    @contextmanager
    def held(self, step: str) -> Iterator[None]:
        """The pipeline's next call of a step lasts until the block ends."""
        held = self.control / HELD
        held.touch()
        self.order(step, "hold")
        try:
            yield
        finally:
            held.unlink()

    def filled_case(self) -> str:
        """A case with every image, not planned."""
        with self.client() as client:
            case = client.open_case()
            for role in ("pmr", "pct", "ict", "ict-probe-mask"):
                client.upload(case, role, self.images[role])
        return case

    def planned_case(self) -> str:
        """A case with its plan; shared by the tests that only read it or guide with it."""
        if not self._plans:
            self._plans.append(self.newly_planned_case())
        return self._plans[0]

    def newly_planned_case(self) -> str:
        """A case with its plan, for a test that needs it untouched by others."""
        case = self.filled_case()
        with self.client() as client:
            client.wait(client.plan(case, engine="learned", wait_s=60)["id"])
        return case


def scraped(served: Served) -> str:
    """What Prometheus would read."""
    return httpx2.get(f"http://127.0.0.1:{served.settings.metrics_port}/metrics").text


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts that an answer is this problem document, whole and without a trace; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code
    assert document["status"] == status
    assert {"type", "title", "detail"} <= document.keys()
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) > 0
    return document


def nifti_bytes(volume: Volume, folder: Path, name: str = "image.nii.gz") -> bytes:
    """A volume as the bytes of a NIfTI file."""
    write_nifti(volume, folder / name)
    return (folder / name).read_bytes()


def small_ct(folder: Path, shape: tuple[int, int, int] = (24, 24, 16), seed: int = 0) -> bytes:
    """A body of soft tissue in air, as NIfTI bytes."""
    rng = np.random.default_rng(seed)
    data = np.full(shape, -1000, np.int16)
    data[4:-4, 4:-4] = rng.normal(50, 15, (shape[0] - 8, shape[1] - 8, shape[2])).astype(np.int16)
    return nifti_bytes(Volume(data, Geometry.from_spacing(shape, 6.0, origin_mm=(-70.0, -70.0, -40.0))), folder)


def in_background(call: Callable[[], Any]) -> Callable[[], Any]:
    """Runs a call in a thread; the returned function waits for its value."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()

    def value() -> Any:
        thread.join(120)
        return found[0]

    return value


@contextmanager
def boot(folder: Path, **settings_told: Any) -> Iterator[Served]:
    """Boots the server in its own process, with everything in `folder`, and ends it with the block.

    Args:
        folder: a second boot in the same one finds the first one's data.
        settings_told: settings beside those of `obedient_server`.
    """
    from hepalign.inference.untrained import make_untrained_bundle

    if not (folder / "control").exists():
        (folder / "control").mkdir()
        make_untrained_bundle(folder / "release")
        phantom_files(folder / "images")
    release, images = folder / "release", {path.name[:-7]: path for path in (folder / "images").iterdir()}
    spans, issuer = Spans(), Issuer(folder)
    told = {"traces": spans.address, "oidc": issuer.settings} | settings_told
    (folder / "settings.json").write_text(json.dumps(told), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("obedient_server.py")), str(folder)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if line.startswith("{")), None)
        assert ready is not None, (folder / "server.log").read_text(encoding="utf-8")[-4000:]
        told = json.loads(ready)
        settings = Settings.model_validate(told["settings"])
        records = Records(settings.database)
        known = OTHER_SITE in [entry["site"] for entry in sites.list_sites(records)]
        other = sites.rotate(records, OTHER_SITE) if known else sites.add_site(records, OTHER_SITE)
        records.engine.dispose()
        yield Served(
            told["url"], told["token"], settings, process.pid, folder / "control", images, other, release, spans, issuer
        )
    finally:
        spans.close()
        process.stdin.close()
        ended = process.wait(120)
    # one that was killed leaves Ray's folder behind, one that was stopped does not
    assert ended or not Path(told["ray_folder"]).exists()


def replicas(served: Served, name: str) -> list[int]:
    """Process ids of a deployment's replicas, of this server and no other on the machine."""
    parents, titles = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(
                line.split(":\t", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":\t" in line
            )
            titles[int(lines["Pid"])] = (status.parent / "cmdline").read_text(encoding="utf-8")
            parents[int(lines["Pid"])] = int(lines["PPid"])
        except (OSError, ValueError):
            continue

    def ours(pid: int) -> bool:
        while pid in parents and pid != served.pid:
            pid = parents[pid]
        return pid == served.pid

    return [pid for pid, title in titles.items() if f"ServeReplica:hepalign:{name}" in title and ours(pid)]


def phantom_files(folder: Path) -> dict[str, Path]:
    """A small phantom case's images by HTTP role, each in a file of its name."""
    from hepalign.cases.phantom.make import make_case

    folder.mkdir()
    case = make_case(3, shape=SHAPE)
    roles = {"pmr": "pmr", "pct": "pct", "ict": "ict", "ict-probe-mask": "ict_probe_mask", "pct-liver": "pct_liver",
             "pmr-tumour": "pmr_tumour"}  # fmt: skip
    for role, name in roles.items():
        write_nifti(case.volumes[name], folder / f"{role}.nii.gz")
    return {role: folder / f"{role}.nii.gz" for role in roles}
