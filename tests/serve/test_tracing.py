"""A trace for each call, as the SDK exports it from a real server."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gruve.client import AsyncClient, Client
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.calls.tracing import Tracing
from gruve.v1 import model_pb2
from serving import PATIENCE_S, refusal, token, until

GENERATE = "gruve.v1.GenerationService/Generate"
PHASES = ["queue", "prompt", "first token", "stream"]


class Traces:
    """The spans that a server in this process has ended."""

    def __init__(self, **options: object) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.begin = Tracing(self.provider).begin

    @property
    def calls(self):
        return [span for span in self._exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    def call(self, count: int = 1):
        """The last of `count` calls, when all have ended."""
        until(lambda: len(self.calls) >= count)
        assert len(self.calls) == count
        return self.calls[-1]

    def phases(self, call):
        """The spans below a call, in the order in which they begin."""
        found = [
            s for s in self._exporter.get_finished_spans() if s.parent and s.parent.span_id == call.context.span_id
        ]
        return sorted(found, key=lambda span: (span.start_time, span.end_time))


@pytest.fixture
def traces():
    return Traces()


@pytest.fixture
def traced(start, traces):
    return start(trace_call=traces.begin)


def test_a_generation_is_one_trace_whose_phases_follow_each_other(traced, traces):
    traced.read(text="abc", max_tokens=7, ignore_eos=True)
    call = traces.call()
    phases = traces.phases(call)
    assert (call.name, call.parent, call.status.status_code) == (GENERATE, None, StatusCode.UNSET)
    assert [span.name for span in phases] == PHASES
    assert {span.context.trace_id for span in phases} == {call.context.trace_id}
    ends = [span.end_time for span in phases]
    assert [span.start_time for span in phases][1:] == ends[:-1]
    assert call.start_time <= phases[0].start_time <= ends[-1] == call.end_time


def test_attributes_follow_the_conventions_and_tell_nothing_of_the_contents(start, traces, tmp_path):
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(trace_call=traces.begin, access=AccessConfig(tmp_path / "keys.json"))
    with Client(server.address, metadata=[("authorization", f"Bearer {key}")]) as client:
        stream = client.generate("To be", model="tiny", new_session=True, max_tokens=7, ignore_eos=True)
        text = stream.text()
    call = traces.call()
    found = dict(call.attributes)
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < PATIENCE_S
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": GENERATE,
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gruve",
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ("length",),
        "gruve.tenant": "ann",
    }
    exported = "".join(span.to_json() for span in (call, *traces.phases(call)))
    assert not [secret for secret in ("To be", text, key, stream.start.session_id) if secret in exported]


def test_a_cancelled_stream_is_recorded_once_as_cancelled(traced, traces):
    call = traced.generate(text="ab", max_tokens=50, ignore_eos=True, max_tokens_per_second=5)
    token(call)
    call.cancel()
    span = traces.call()
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET  # the caller's wish is no fault of the server
    assert 1 <= span.attributes["gen_ai.usage.output_tokens"] < 50
    assert [phase.name for phase in traces.phases(span)] == PHASES


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda server: server.generate(model="nothing"), "NOT_FOUND"),
        (lambda server: server.generate(max_tokens=0), "INVALID_ARGUMENT"),
        (lambda server: server.session("forged"), "NOT_FOUND"),
    ],
)
def test_a_refused_call_is_recorded_once_with_its_status(traced, traces, ask, code):
    refusal(lambda: ask(traced))
    span = traces.call()
    assert span.attributes["rpc.response.status_code"] == code
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert not traces.phases(span)


def test_a_fault_of_the_server_is_an_error_once_and_without_its_text(traced, traces, monkeypatch):
    def fail(*_):
        raise RuntimeError("To be")

    monkeypatch.setattr("gruve.serve.generation_service.validate_generate", fail)
    refusal(lambda: traced.generate())
    span = traces.call()
    assert (span.attributes["error.type"], span.status.status_code) == ("INTERNAL", StatusCode.ERROR)
    assert "To be" not in span.to_json()


def test_a_call_continues_the_trace_of_the_program_that_makes_it(traced, traces):
    tracer = traces.provider.get_tracer("a program")
    with Client(traced.address) as client, tracer.start_as_current_span("work") as work:
        client.generate("O", model="tiny", max_tokens=2).text()
    assert traces.call().parent.span_id == work.get_span_context().span_id

    async def use() -> None:
        async with AsyncClient(traced.address) as client:
            with tracer.start_as_current_span("more work"):
                await client.converse("O", model="tiny", max_tokens=2).text()
            await client.models()

    asyncio.run(use())
    until(lambda: len(traces.calls) == 3)
    spans = {span.name.split("/")[1]: span for span in traces.calls}
    assert spans["Converse"].parent is not None
    assert spans["ListModels"].parent is None  # no span was current


def test_a_malformed_traceparent_begins_a_new_trace(traced, traces):
    traced.models.ListModels(model_pb2.ListModelsRequest(), metadata=(("traceparent", "00-nonsense-01"),))
    assert traces.call().parent is None


def openmetrics(server):
    url = f"http://127.0.0.1:{server.serving.metrics_port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {family.name: family for family in families}


@pytest.mark.parametrize("sampled", [True, False])
def test_the_histogram_of_first_tokens_names_a_trace_that_is_exported(start, sampled):
    traces = Traces() if sampled else Traces(sampler=ALWAYS_OFF)
    server = start(trace_call=traces.begin)
    server.read(max_tokens=2)
    samples = openmetrics(server)["gruve_time_to_first_token_seconds"].samples
    named = [sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar]
    assert named == ([format_trace_id(traces.call().context.trace_id)] if sampled else [])
