"""A typed client: open a case, upload, plan, guide, wait, download."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import stamina

from hepalign.errors import EXIT_BAD_DATA, HepalignError, UsageError, WorkFailedError
from hepalign_serve.parcels import Parcel, parcel

# An image larger than this travels in chunks, each of which survives a lost connection.
PART_BYTES = 8 << 20
_BUSY = (429, 502, 503)
_BAD_DATA = (413, 415, 422)
_UNFINISHED = ("queued", "running")

Job = dict[str, Any]


class ServiceError(HepalignError):
    """The service refused: its problem document's code, status and detail."""


class RefusedImageError(ServiceError):
    """The service cannot use the image as it is: the same document, another exit status."""

    exit_code = EXIT_BAD_DATA


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
        self, case: str, role: str, image: Path | bytes, *, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Sends an image with its SHA-256; a large one in chunks, of which those that arrived are not sent again.

        Args:
            case: the case's id.
            role: `pmr`, `pct`, `ict`, `pct-liver`, `ict-probe-mask` …
            image: a NIfTI file, a DICOM folder or zip, a JSON probe mask; or their bytes.
            progress: called with the bytes sent so far and in all.
        """
        tell = progress or (lambda sent, total: None)
        with parcel(image) as sending:
            if sending.size > PART_BYTES:
                return self._upload_in_parts(case, role, sending, tell)
            digest = base64.b64encode(sending.digest).decode()
            headers = {"Content-Type": sending.media_type, "Content-Digest": f"sha-256=:{digest}:"}
            found = self._send("PUT", f"/v1/cases/{case}/images/{role}", sending, 0, sending.size, headers)
            tell(sending.size, sending.size)
            return found

    def _upload_in_parts(
        self, case: str, role: str, sending: Parcel, tell: Callable[[int, int], None]
    ) -> dict[str, Any]:
        path, cut = f"/v1/cases/{case}/uploads/{role}", sending.cut(PART_BYTES)
        whole = {"parts": len(cut), "sha256": sending.digest.hex(), "content_type": sending.media_type}
        arrived = {int(number): size for number, size in self._json("GET", path)["parts"].items()}
        # Chunks of another image may lie there: the SHA-256 of the whole tells, and all are sent once more.
        for here in (arrived, {}) if arrived else ({},):
            sent = 0
            for number, (start, size) in enumerate(cut):
                if here.get(number) != size:
                    self._send("PUT", f"{path}/{number}", sending, start, size, {})
                sent += size
                tell(sent, sending.size)
            try:
                return self._json("POST", f"{path}/complete", json=whole)
            except ServiceError as error:
                if error.code != "digest_mismatch" or not here:
                    raise
        raise AssertionError("unreachable")

    def _send(
        self, method: str, path: str, sending: Parcel, start: int, size: int, headers: dict[str, str]
    ) -> dict[str, Any]:
        headers = {"Content-Length": str(size), **headers}
        return self._json(method, path, headers=headers, content=lambda: sending.pieces(start, size))

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

    def artifact(
        self, case: str, name: str, folder: Path, *, job: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:  # fmt: skip
        """Saves an artifact in `folder`; a lost connection is taken up where it broke, the whole is checked by SHA-256.

        Raises:
            ServiceError: what the service refuses.
            WorkFailedError: `digest_mismatch` when what came is not what was sent.
        """
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(name).name
        partial = target.with_name(f"{target.name}.partial")
        partial.unlink(missing_ok=True)
        path, params = f"/v1/cases/{case}/artifacts/{name}", {} if job is None else {"job": job}
        download = _Download(self._http, path, params, partial, progress or (lambda got, total: None))
        for attempt in stamina.retry_context(on=(httpx2.TransportError, _BusyError), attempts=self._attempts):
            with attempt:
                download.go_on()
        if not download.whole():
            partial.unlink()
            raise WorkFailedError(f"{target.name} came damaged: ask again", code="digest_mismatch")
        return partial.replace(target)

    def download(self, case: str, folder: Path, *, job: Job | None = None) -> list[Path]:
        """Saves everything that a finished job left; without `job` the newest plan and guide that succeeded."""
        jobs = [self.newest(case, "plan"), self.newest(case, "guide")] if job is None else [job]
        found = [(one["id"], name) for one in jobs if one is not None for name in one["artifacts"]]
        return [self.artifact(case, name, folder, job=identifier) for identifier, name in found]

    def newest(self, case: str, kind: str) -> Job | None:
        """The case's newest job of a kind (`plan`, `guide`) that succeeded: files of one job belong together."""
        done = [job for job in self.case(case)["jobs"] if job["kind"] == kind and job["state"] == "succeeded"]
        return done[-1] if done else None

    def dicom(self, case: str, name: str, *, job: str | None = None) -> bytes:
        """An artifact as a zip of derived DICOM files."""
        params = {"format": "dicom"} | ({} if job is None else {"job": job})
        return self._call("GET", f"/v1/cases/{case}/artifacts/{name}", params=params).content

    def dicom_zip(self, case: str, name: str, folder: Path) -> Path:
        """Saves `dicom` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{name.partition('.')[0]}.zip"
        target.write_bytes(self.dicom(case, name))
        return target

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


class _Download:
    """A file that comes in as many pieces as the connection breaks it into."""

    def __init__(
        self, http: httpx2.Client, path: str, params: dict[str, str], partial: Path, tell: Callable[[int, int], None]
    ) -> None:
        self._http, self._path, self._params, self._partial, self._tell = http, path, params, partial, tell
        self._digest = ""

    def go_on(self) -> None:
        """Asks for what is missing."""
        got = self._partial.stat().st_size if self._partial.exists() else 0
        headers = {"Range": f"bytes={got}-", "If-Range": f'"{self._digest}"'} if got and self._digest else {}
        with self._http.stream("GET", self._path, params=self._params, headers=headers) as answer:
            if answer.status_code in _BUSY:
                raise _BusyError
            if answer.status_code >= 400:
                answer.read()
                raise _refusal(_document(answer))
            self._digest = str(answer.headers.get("ETag", "")).strip('"')
            goes_on = answer.status_code == 206
            total = int(answer.headers.get("Content-Length", 0)) + (got if goes_on else 0)
            with self._partial.open("ab" if goes_on else "wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
                    self._tell(file.tell(), total)

    def whole(self) -> bool:
        """What came has the SHA-256 that the service named (where it named one)."""
        with self._partial.open("rb") as file:
            return self._digest in ("", hashlib.file_digest(file, "sha256").hexdigest())


def _document(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = answer.json()
    except ValueError:
        found = {}
    return {"code": "no_answer", "status": answer.status_code, "detail": f"HTTP {answer.status_code}"} | found


def _refusal(problem: Mapping[str, Any]) -> ServiceError:
    status = int(problem["status"])
    kind = RefusedImageError if status in _BAD_DATA else ServiceError
    return kind(str(problem["detail"]), code=str(problem["code"]), status=status)
