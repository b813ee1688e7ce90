"""Plan, guide and fetch results over HTTP with Python's own library alone; what to load, and under which name."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Report = Callable[[str, float], None]
# Results in the order in which they are loaded: file, how Slicer loads it, what it is called.
RESULTS: tuple[tuple[str, Literal["volume", "labels"], str], ...] = (
    ("pct_on_ict.nii.gz", "volume", "pCT on iCT"),
    ("pmr_on_ict.nii.gz", "volume", "pMR on iCT"),
    ("sct_on_ict.nii.gz", "volume", "SYNTHETIC CT on iCT"),
    ("inpct.nii.gz", "volume", "iCT inpainted (SYNTHETIC voxels)"),
    ("labels_on_ict.nii.gz", "labels", "labels on iCT"),
    ("inpainted_mask.nii.gz", "labels", "SYNTHETIC voxels"),
)
PREFIX = {"accept": "", "review": "REVIEW: "}
REJECTED = "REJECTED, DO NOT USE: "


class RefusedError(Exception):
    """The service's problem: its words, and its stable code."""

    def __init__(self, detail: str, code: str) -> None:
        super().__init__(f"{detail} [{code}]")
        self.code = code


@dataclass(frozen=True)
class Loaded:
    """A result's file and how it goes into the scene."""

    path: Path
    kind: Literal["volume", "labels"]
    name: str


@dataclass(frozen=True)
class Guidance:
    """What a guide gave: the verdict and what to load."""

    status: str
    reasons: Sequence[str]
    results: Sequence[Loaded]


class Session:
    """One site's calls.

    Args:
        url: the service's address.
        token: the site's token; it travels in a header only.
    """

    def __init__(self, url: str, token: str) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise RefusedError("the service's address begins with http:// or https://", "usage")
        self._url, self._token = url.rstrip("/"), token

    def plan(self, images: Mapping[str, Path], report: Report) -> str:
        """Opens a case, sends the pre-procedural images by role and plans; the case's id."""
        case = str(self._json("POST", "/v1/cases", {})["id"])
        self._send(case, images, report)
        self._order(case, "plan", report)
        return case

    def guide(self, case: str, images: Mapping[str, Path], folder: Path, report: Report) -> Guidance:
        """Sends the iCT and its probe mask, guides, and fetches the results into a folder."""
        self._send(case, images, report)
        job = self._order(case, "guide", report)
        quality = job["result"]["quality"]
        prefix = PREFIX.get(quality["status"], REJECTED)
        results = []
        for name, kind, title in RESULTS:
            if name in job["artifacts"]:
                report(f"fetching {title}", 1.0)
                path = folder / name
                path.write_bytes(self._call("GET", f"/v1/cases/{case}/artifacts/{name}?job={job['id']}"))
                results.append(Loaded(path, kind, f"{prefix}{title}"))
        return Guidance(quality["status"], [*quality.get("reasons", []), *job["result"].get("warnings", [])], results)

    def _send(self, case: str, images: Mapping[str, Path], report: Report) -> None:
        for role, path in images.items():
            report(f"sending {role}", 0.0)
            content = path.read_bytes()
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            headers = {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
            self._call("PUT", f"/v1/cases/{case}/images/{role}", content, headers)

    def _order(self, case: str, kind: str, report: Report) -> dict[str, Any]:
        job = self._json("POST", f"/v1/cases/{case}/{kind}", {})
        while job["state"] in ("queued", "running"):
            waits = job["state"] == "queued"
            report(
                f"{kind}: waiting, {job['queue_position']} before" if waits else f"{kind}: {job['step']}",
                job["progress"],
            )
            time.sleep(0.3)
            job = self._json("GET", f"/v1/jobs/{job['id']}")
        if job["state"] == "failed":
            raise RefusedError(job["problem"]["detail"], job["problem"]["code"])
        return job

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        found: dict[str, Any] = json.loads(self._call(method, path, content, headers))
        return found

    def _call(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        words = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        request = urllib.request.Request(self._url + path, content, words, method=method)  # noqa: S310 (checked above)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except urllib.error.URLError as error:
            raise RefusedError("the service cannot be reached", "no_answer") from error


def probe_box(bounds_mm: Sequence[float]) -> str:
    """Slicer's ROI bounds (x low, x high, y low, …; RAS, mm) as the probe mask that the service reads."""
    low, high = list(bounds_mm[::2]), list(bounds_mm[1::2])
    return json.dumps({"kind": "box", "low_mm": low, "high_mm": high})


def _refusal(error: urllib.error.HTTPError) -> RefusedError:
    try:
        problem = json.loads(error.read())
        return RefusedError(problem["detail"], problem["code"])
    except (ValueError, KeyError):
        return RefusedError(f"the service answered {error.code}", "no_answer")
