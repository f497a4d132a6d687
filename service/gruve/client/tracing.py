"""Sends the trace that is current in the calling program with each call, if the program has OpenTelemetry."""

from __future__ import annotations

try:
    from opentelemetry import propagate, trace
except ImportError:  # a client alone does not bring it
    TRACES = False
else:
    TRACES = True


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The metadata that names the current span, by default W3C's `traceparent`; empty where no span is current."""
    if not TRACES or not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())
