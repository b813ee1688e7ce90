"""OpenTelemetry spans from the request through the job to every step, where an operator names a collector.

Spans carry names of routes, steps and releases and random ids: nothing that a caller sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_HEADER = "traceparent"
_SEND_EVERY_MS = 1000
_format = TraceContextTextMapPropagator()
_tracer: Tracer = trace.NoOpTracer()


def configure(name: str, collector: str) -> None:
    """Sends this process's spans to a collector (OTLP over HTTP); an empty address: none are made.

    Args:
        name: the deployment's name.
        collector: the address without a path, e.g. `http://otel:4318`.
    """
    global _tracer
    if not collector:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # of our own: Ray sets OpenTelemetry's global provider for its metrics
    provider = TracerProvider(resource=Resource.create({"service.name": "hepalign", "hepalign.part": name}))
    exporter = OTLPSpanExporter(f"{collector.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS))
    _tracer = provider.get_tracer("hepalign_serve")


@contextmanager
def span(name: str, parent: str = "", **attributes: str | int | float) -> Iterator[Span]:
    """A span around a block, below the one that `parent` names (a W3C traceparent)."""
    with _tracer.start_as_current_span(name, _context(parent), attributes=attributes) as opened:
        yield opened


def start(name: str, parent: str, began_s: float | None = None, **attributes: str | int | float) -> Span:
    """A span that its owner ends; `began_s` when it began before now (seconds since 1970)."""
    began_ns = None if began_s is None else round(began_s * 1e9)
    return _tracer.start_span(name, _context(parent), attributes=attributes, start_time=began_ns)


def name_of(opened: Span) -> str:
    """The span's W3C traceparent, to carry it elsewhere; empty when none are made."""
    carrier: dict[str, str] = {}
    _format.inject(carrier, trace.set_span_in_context(opened))
    return carrier.get(_HEADER, "")


def _context(parent: str) -> Context | None:
    return _format.extract({_HEADER: parent}) if parent else None
