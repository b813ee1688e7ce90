"""Prometheus metrics, on a private port that nothing site-facing reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)

# Method, route, status, seconds, bytes taken, and the problem's code where it is one.
Seen = tuple[str, str, int, float, int, str]
_DIFFERENCE_MM = (0.01, 0.1, 0.3, 1, 2, 3, 5, 10, 20)


class Metrics:
    """What the desk counts. Labels are names of routes, steps and codes: nothing that a caller sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"namespace": "hepalign", "registry": self.registry}
        self._requests = Counter("requests", "HTTP requests", ["method", "route", "status"], **own)
        self._refusals = Counter("refusals", "Answers that are problem documents", ["route", "code"], **own)
        self._latency = Histogram("request_seconds", "HTTP latency", ["route"], buckets=_SECONDS, **own)
        self._received = Counter("received_bytes", "Bytes of request bodies", **own)
        self._jobs = Counter("jobs", "Finished jobs", ["kind", "outcome"], **own)
        self._whole = Histogram("job_seconds", "From order to end", ["kind"], buckets=_SECONDS, **own)
        self._steps = Histogram("step_seconds", "Time of a job's step", ["kind", "step"], buckets=_SECONDS, **own)
        self._quality = Counter("quality", "Guide results by status", ["status"], **own)
        self._flags = Counter("quality_flags", "Guide results with this flag", ["flag"], **own)
        self._folding = Histogram("folding_fraction", "Folds", buckets=(0, 1e-5, 1e-4, 1e-3, 1e-2, 1), **own)
        self._drift = Gauge("drift", "Recent inputs and results against earlier, in SD", ["source", "statistic"], **own)
        self._queue = Gauge("queue_length", "Jobs waiting", ["kind"], **own)
        self._release = Gauge("release", "The release in force", ["name", "version", "digest"], **own)
        self._refused = Counter("release_refusals", "Releases that were not taken", ["code"], **own)
        self._shadow = Counter("shadow", "Jobs offered to the candidate", ["kind", "outcome"], **own)
        self._difference = Histogram(
            "shadow_difference_mm", "Candidate's field against the served one", ["kind"], buckets=_DIFFERENCE_MM, **own
        )
        self._audit = Gauge("audit_intact", "0: the audit did not fit its anchor at the start", **own)

    def expose(self, host: str, port: int) -> None:
        """Serves /metrics on a private address."""
        start_http_server(port, host, registry=self.registry)

    def request(self, seen: Seen) -> None:
        """One answered request."""
        method, route, status, seconds, taken, code = seen
        self._requests.labels(method, route, status).inc()
        self._latency.labels(route).observe(seconds)
        self._received.inc(taken)
        if code:
            self._refusals.labels(route, code).inc()

    def job(self, kind: str, outcome: Mapping[str, Any], seconds: float) -> None:
        """One finished attempt, `seconds` after it was ordered: its problem's code, or its timings and quality."""
        if "problem" in outcome:
            self._jobs.labels(kind, outcome["problem"]["code"]).inc()
            return
        result = outcome["result"]
        self._jobs.labels(kind, "succeeded").inc()
        self._whole.labels(kind).observe(seconds)
        for step, step_s in result.get("timings", {}).items():
            self._steps.labels(kind, step).observe(step_s)
        if kind == "guide":
            self._judged(result)

    def _judged(self, result: Mapping[str, Any]) -> None:
        quality = result.get("quality", {})
        self._quality.labels(str(quality.get("status", "unknown"))).inc()
        for flag in ("degraded", "tumour_in_hole"):
            self._flags.labels(flag).inc(1 if result.get(flag) else 0)
        if isinstance(quality.get("folding_fraction"), float):
            self._folding.observe(quality["folding_fraction"])

    def drift(self, found: Mapping[tuple[str, str], float]) -> None:
        """How far inputs and results have moved, by source and statistic."""
        for (source, statistic), value in found.items():
            self._drift.labels(source, statistic).set(value)

    def shadow(self, kind: str, outcome: str, difference_mm: float | None = None) -> None:
        """What became of a job that the candidate could have done: agrees, differs, failed or dropped."""
        self._shadow.labels(kind, outcome).inc()
        if difference_mm is not None:
            self._difference.labels(kind).observe(difference_mm)

    def audit(self, intact: bool) -> None:
        """Whether the audit fitted its anchor when the desk began."""
        self._audit.set(intact)

    def release_refused(self, code: str) -> None:
        """A release that was found and not taken."""
        self._refused.labels(code).inc()

    def queues(self, lengths: Mapping[str, int]) -> None:
        """How many jobs wait in each lane."""
        for kind, length in lengths.items():
            self._queue.labels(kind).set(length)

    def release(self, name: str, version: str, digest: str) -> None:
        """The release in force."""
        self._release.clear()
        self._release.labels(name, version, digest).set(1)
