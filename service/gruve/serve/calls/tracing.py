"""Traces of OpenTelemetry: a span for each call, and below it one for each phase of a generation.

Only the API is used. The operator's SDK decides what is sampled and where it goes, by its `OTEL_*` variables. The spans
of the phases are made when a call ends, from the times that were recorded. No attribute holds a prompt, a text, a
session id or a key. The names follow the semantic conventions of RPC and of generative AI.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from opentelemetry import propagate, trace

from gruve import __version__
from gruve.serve.callers.identity import current_identity
from gruve.serve.calls.access_log import CallFacts, EndTrace, Metadata

SERVER_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""The statuses that make a server's span an error, by the conventions. The others are the caller's."""
NS = 1_000_000_000


class Tracing:
    """Traces calls. Its `begin` is what `ServeConfig.trace_call` takes."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider` makes the spans; None takes the one that was set for the process."""
        self._tracer = trace.get_tracer("gruve", __version__, provider)

    def begin(self, method: str, metadata: Metadata, facts: CallFacts) -> EndTrace:
        """Begins the span of a call, in the trace that its metadata names. Returns what ends it."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        began_ns, began_s = time.time_ns(), time.monotonic()
        span = self._tracer.start_span(
            method, propagate.extract(carrier), trace.SpanKind.SERVER, attributes, start_time=began_ns
        )
        ids = span.get_span_context()
        if ids.trace_flags.sampled:
            facts.exemplar = {
                "trace_id": trace.format_trace_id(ids.trace_id),
                "span_id": trace.format_span_id(ids.span_id),
            }

        def ns(monotonic_s: float) -> int:
            return began_ns + int((monotonic_s - began_s) * NS)

        def end(code: str) -> None:
            now_s = time.monotonic()
            if span.is_recording():
                self._describe(span, code, facts)
                below = trace.set_span_in_context(span)
                for name, from_s, to_s in _phases(facts, now_s):
                    phase = self._tracer.start_span(name, below, start_time=ns(from_s))
                    phase.end(ns(to_s))
            span.end(ns(now_s))

        return end

    @staticmethod
    def _describe(span: trace.Span, code: str, facts: CallFacts) -> None:
        """Sets the attributes that are known at the end, and the span's status."""
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("gruve.tenant", current_identity().tenant)
        if code in SERVER_FAULTS:
            span.set_attribute("error.type", code)
            span.set_status(trace.StatusCode.ERROR)
        if not facts.model:
            return
        span.set_attribute("gen_ai.operation.name", "text_completion")
        span.set_attribute("gen_ai.provider.name", "gruve")
        span.set_attribute("gen_ai.response.model", facts.model)
        span.set_attribute("gen_ai.usage.input_tokens", facts.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", facts.generated_tokens)
        if facts.finish_reason:
            span.set_attribute("gen_ai.response.finish_reasons", [facts.finish_reason])
        if facts.first_token_s is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", facts.first_token_s)


def _phases(facts: CallFacts, ended_s: float) -> Iterator[tuple[str, float, float]]:
    """The phases that a call has reached, with their monotonic times. The last one ends with the call."""
    begins = {
        "queue": facts.admitted_s,
        "prompt": facts.slot_s,
        "first token": facts.decoded_s,
        "stream": facts.sent_s,
    }
    reached = [(name, begin_s) for name, begin_s in begins.items() if begin_s is not None]
    for at, (name, begin_s) in enumerate(reached):
        end_s = reached[at + 1][1] if at + 1 < len(reached) else ended_s
        yield name, begin_s, max(begin_s, end_s)
