"""A typed client: open a case, upload, plan, guide, wait, download."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import stamina

from hepalign.errors import HepalignError, UsageError, WorkFailedError

CHUNK_BYTES = 1 << 20
_BUSY = (429, 502, 503)
_UNFINISHED = ("queued", "running")

Job = dict[str, Any]


class ServiceError(HepalignError):
    """The service refused: its problem document's code, status and detail."""


class _BusyError(Exception):
    """A refusal that says when to come back."""


class Client:
    """Talks to one service as one site. Every call retries what is safe to retry (429, 502, 503, lost connections).

    Args:
        url: the service's address; default `HEPALIGN_URL`.
        token: the site's key; default `HEPALIGN_TOKEN`.
        attempts: how often a call is tried.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, attempts: int = 6) -> None:
        url, token = url or os.environ.get("HEPALIGN_URL"), token or os.environ.get("HEPALIGN_TOKEN")
        if not url or not token:
            raise UsageError("set HEPALIGN_URL and HEPALIGN_TOKEN", code="no_service")
        headers = {"Authorization": f"Bearer {token}"}
        timeout = httpx2.Timeout(60.0, read=660.0)
        self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout)
        self._attempts = attempts

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def open_case(self) -> str:
        """A new case's id."""
        return str(self._json("POST", "/v1/cases", json={})["id"])

    def cases(self) -> list[dict[str, Any]]:
        """The site's own cases."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/cases")["cases"]
        return found

    def case(self, case: str) -> dict[str, Any]:
        """One case with its images, jobs and artifacts."""
        return self._json("GET", f"/v1/cases/{case}")

    def erase(self, case: str) -> None:
        """Erases a case."""
        self._call("DELETE", f"/v1/cases/{case}")

    def release(self) -> dict[str, Any]:
        """What is served."""
        return self._json("GET", "/v1/release")

    def upload(
        self, case: str, role: str, image: Path | bytes, *, progress: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """Sends an image (NIfTI file or bytes, DICOM zip, or a JSON probe mask) with its SHA-256.

        Args:
            case: the case's id.
            role: `pmr`, `pct`, `ict`, `pct-liver`, `ict-probe-mask` …
            image: a file's path or its bytes.
            progress: called with the bytes sent so far.
        """
        size, digest = _measured(image)
        headers = {
            "Content-Length": str(size),
            "Content-Type": _media_type(image),
            "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        }
        path = f"/v1/cases/{case}/images/{role}"
        return self._json("PUT", path, headers=headers, content=lambda: _chunks(image, progress))

    def plan(self, case: str, *, engine: str | None = None, wait_s: float = 0, key: str | None = None) -> Job:
        """Starts the plan; the job, finished if `wait_s` was enough."""
        return self._order(f"/v1/cases/{case}/plan", {} if engine is None else {"engine": engine}, wait_s, key)

    def guide(self, case: str, *, wait_s: float = 0, key: str | None = None, **options: Any) -> Job:
        """Starts a guide (`engine`, `budget_s`, `plan`, `previous`); the job, finished if `wait_s` was enough."""
        return self._order(f"/v1/cases/{case}/guide", options, wait_s, key)

    def job(self, job: str) -> Job:
        """Where a job stands."""
        return self._json("GET", f"/v1/jobs/{job}")

    def wait(self, job: str, *, timeout_s: float = 900.0, progress: Callable[[Job], None] | None = None) -> Job:
        """Waits for a job's end and returns it.

        Raises:
            ServiceError: the job's problem, when it failed.
            WorkFailedError: `timeout` when it is not done in time (it goes on).
        """
        until, pause_s = time.monotonic() + timeout_s, 0.1
        while True:
            state = self.job(job)
            if progress is not None:
                progress(state)
            if state["state"] == "succeeded":
                return state
            if state["state"] == "failed":
                raise _refusal(state["problem"])
            if time.monotonic() > until:
                raise WorkFailedError(f"job {job} goes on: ask for it later", code="timeout")
            time.sleep(pause_s)
            pause_s = min(2.0, pause_s * 1.3)

    def artifact(self, case: str, name: str, folder: Path, *, job: str | None = None) -> Path:
        """Saves an artifact in `folder`; a half-written file never stays under its name."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(name).name
        partial = target.with_name(f"{target.name}.partial")
        params = {} if job is None else {"job": job}
        with self._http.stream("GET", f"/v1/cases/{case}/artifacts/{name}", params=params) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _refusal(_document(answer))
            with partial.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        return partial.replace(target)

    def download(self, case: str, folder: Path, *, job: Job | None = None) -> list[Path]:
        """Saves everything that a finished job left; without `job` the newest file of every name."""
        names = self.case(case)["artifacts"] if job is None else job["artifacts"]
        return [self.artifact(case, name, folder, job=None if job is None else job["id"]) for name in names]

    def dicom(self, case: str, name: str) -> bytes:
        """An artifact as a zip of derived DICOM files."""
        return self._call("GET", f"/v1/cases/{case}/artifacts/{name}", params={"format": "dicom"}).content

    def _order(self, path: str, body: Mapping[str, Any], wait_s: float, key: str | None) -> Job:
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        if wait_s > 0:
            headers["Prefer"] = f"wait={int(wait_s)}"
        began = time.monotonic()
        job = self._json("POST", path, headers=headers, json=dict(body))
        # The service caps how long one request waits; the caller's wish may be longer.
        while job["state"] in _UNFINISHED and time.monotonic() - began < wait_s:
            time.sleep(0.2)
            job = self.job(job["id"])
        if job["state"] == "failed":
            raise _refusal(job["problem"])
        return job

    def _json(self, method: str, path: str, **words: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._call(method, path, **words).json()
        return answer

    def _call(self, method: str, path: str, **words: Any) -> httpx2.Response:
        body = words.pop("content", None)
        for attempt in stamina.retry_context(on=(httpx2.TransportError, _BusyError), attempts=self._attempts):
            with attempt:
                content = {} if body is None else {"content": body()}
                answer = self._http.request(method, path, **words, **content)
                # A failed job's answer is final, whatever its status: the same key gets the same answer.
                busy = answer.status_code in _BUSY and "job" not in _document(answer)
                if busy and attempt.num < self._attempts:
                    time.sleep(min(10.0, float(answer.headers.get("Retry-After", 1))))
                    raise _BusyError
        if answer.status_code >= 400:
            raise _refusal(_document(answer))
        return answer


def _document(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = answer.json()
    except ValueError:
        found = {}
    return {"code": "no_answer", "status": answer.status_code, "detail": f"HTTP {answer.status_code}"} | found


def _refusal(problem: Mapping[str, Any]) -> ServiceError:
    return ServiceError(str(problem["detail"]), code=str(problem["code"]), status=int(problem["status"]))


def _measured(image: Path | bytes) -> tuple[int, bytes]:
    if isinstance(image, bytes):
        return len(image), hashlib.sha256(image).digest()
    with image.open("rb") as file:
        return image.stat().st_size, hashlib.file_digest(file, "sha256").digest()


def _media_type(image: Path | bytes) -> str:
    suffix = image.suffix if isinstance(image, Path) else ""
    known = {".zip": "application/zip", ".json": "application/json", ".gz": "application/gzip"}
    return known.get(suffix, "application/octet-stream")


def _chunks(image: Path | bytes, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    sent = 0
    for chunk in _pieces(image):
        yield chunk
        sent += len(chunk)
        if progress is not None:
            progress(sent)


def _pieces(image: Path | bytes) -> Iterator[bytes]:
    if isinstance(image, bytes):
        for start in range(0, len(image), CHUNK_BYTES):
            yield image[start : start + CHUNK_BYTES]
        return
    with image.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
