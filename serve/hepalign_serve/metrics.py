"""Prometheus metrics, on a private port that nothing site-facing reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)

Seen = tuple[str, str, int, float, int]


class Metrics:
    """What the desk counts. Labels are names of routes, steps and codes: nothing that a caller sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"namespace": "hepalign", "registry": self.registry}
        self._requests = Counter("requests", "HTTP requests", ["method", "route", "status"], **own)
        self._latency = Histogram("request_seconds", "HTTP latency", ["route"], buckets=_SECONDS, **own)
        self._received = Counter("received_bytes", "Bytes of request bodies", **own)
        self._jobs = Counter("jobs", "Finished jobs", ["kind", "outcome"], **own)
        self._steps = Histogram("step_seconds", "Time of a job's step", ["kind", "step"], buckets=_SECONDS, **own)
        self._quality = Counter("quality", "Guide results by status", ["status"], **own)
        self._folding = Histogram("folding_fraction", "Folds", buckets=(0, 1e-5, 1e-4, 1e-3, 1e-2, 1), **own)
        self._queue = Gauge("queue_length", "Jobs waiting", ["kind"], **own)
        self._release = Gauge("release", "The release in force", ["name", "version", "digest"], **own)

    def expose(self, host: str, port: int) -> None:
        """Serves /metrics on a private address."""
        start_http_server(port, host, registry=self.registry)

    def request(self, seen: Seen) -> None:
        """One answered request: method, route, status, seconds, bytes taken."""
        method, route, status, seconds, taken = seen
        self._requests.labels(method, route, status).inc()
        self._latency.labels(route).observe(seconds)
        self._received.inc(taken)

    def job(self, kind: str, outcome: Mapping[str, Any]) -> None:
        """One finished attempt: its problem's code, or its timings and quality."""
        if "problem" in outcome:
            self._jobs.labels(kind, outcome["problem"]["code"]).inc()
            return
        result = outcome["result"]
        self._jobs.labels(kind, "succeeded").inc()
        for step, seconds in result.get("timings", {}).items():
            self._steps.labels(kind, step).observe(seconds)
        quality = result.get("quality", {})
        if kind == "guide":
            self._quality.labels(str(quality.get("status", "unknown"))).inc()
            if isinstance(quality.get("folding_fraction"), float):
                self._folding.observe(quality["folding_fraction"])

    def queues(self, lengths: Mapping[str, int]) -> None:
        """How many jobs wait in each lane."""
        for kind, length in lengths.items():
            self._queue.labels(kind).set(length)

    def release(self, name: str, version: str, digest: str) -> None:
        """The release in force."""
        self._release.clear()
        self._release.labels(name, version, digest).set(1)
