"""`/metrics`: the documented names, and numbers that agree with each other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from gruve import __version__
from gruve.serve import health, metrics_server
from gruve.serve.callers.access import METHODS
from serving import HELD, PATIENCE_S, read, refusal, token, until

OF_A_MODEL = {
    "gruve_requests_running",
    "gruve_requests_waiting",
    "gruve_prompt_tokens_total",
    "gruve_generation_tokens_total",
    "gruve_time_to_first_token_seconds_count",
    "gruve_inter_message_seconds_count",
    "gruve_tokens_per_message_count",
    "gruve_queue_seconds_count",
    "gruve_step_seconds_count",
    "gruve_batch_rows_count",
}


def test_every_series_of_a_model_is_there_before_its_first_request(start):
    metrics = start().metrics()
    assert all(metrics[name][("model", "tiny"),] == 0 for name in OF_A_MODEL)
    assert {labels[0] for labels in metrics["gruve_session_moves_total"]} == {
        ("reason", "evicted"),
        ("reason", "expired"),
    }
    assert metrics["gruve_sessions"] == {(("where", "memory"),): 0}
    assert metrics["gruve_build_info"] == {(("version", __version__),): 1}
    assert not [name for name in metrics if name.endswith("_created") or name.startswith("gruve_store")]


def test_the_statuses_that_alerts_count_are_there_before_the_first_call(start):
    handled = start().metrics()["grpc_server_handled_total"]
    own = {name for service, names in METHODS.items() if service.startswith("gruve.") for name in names}
    for code in ("OK", "INTERNAL", "RESOURCE_EXHAUSTED"):
        found = {dict(labels)["grpc_method"] for labels in handled if ("grpc_code", code) in labels}
        assert found == own


def test_metrics_that_cannot_be_collected_are_an_error_in_the_log(caplog, capfd):
    class Broken:
        def describe(self):
            return []

        def collect(self):
            raise ValueError("no figure")

    registry = CollectorRegistry()
    registry.register(Broken())
    server = metrics_server.listen("127.0.0.1", 0, registry, lambda: "")
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=PATIENCE_S)
    server.shutdown()
    server.server_close()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["no figure"]
    assert capfd.readouterr().err == ""


def healthz(server):
    url = f"http://127.0.0.1:{server.serving.metrics_port}/healthz"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_probe_without_grpc_learns_whether_the_server_serves(start):
    server = start()
    assert healthz(server) == (200, b"serving\n")
    server.run(server.server.drain("hand_over", asyncio.Queue()))
    assert healthz(server) == (503, b"not serving\n")


def test_a_probe_finds_an_event_loop_that_is_stuck(start, loop, monkeypatch):
    monkeypatch.setattr(health, "LOOP_ANSWER_S", 0.1)
    server, goes_on = start(), threading.Event()
    loop.call_soon_threadsafe(goes_on.wait)
    try:
        assert healthz(server) == (503, b"the event loop has not answered for 0.1 s\n")
    finally:
        goes_on.set()
    monkeypatch.setattr(health, "LOOP_ANSWER_S", PATIENCE_S)
    assert healthz(server) == (200, b"serving\n")


def test_without_free_file_descriptors_the_metrics_port_pauses_and_says_so_once(monkeypatch, caplog):
    def accept(_):
        raise OSError(errno.EMFILE, "Too many open files")

    pauses = []
    server = metrics_server.listen("127.0.0.1", 0, CollectorRegistry(), lambda: "")
    monkeypatch.setattr(metrics_server, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(WSGIServer, "get_request", accept)
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            server.get_request()
    assert pauses == [metrics_server.FULL_S] * 2
    assert ["ulimit -n" in record.message for record in caplog.records] == [True]
    server.shutdown()
    server.server_close()


def test_beyond_so_many_connections_the_first_one_is_closed_and_the_others_are_served(start, monkeypatch):
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 3)
    server = start()
    address = ("127.0.0.1", server.serving.metrics_port)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address, PATIENCE_S)) for _ in range(4)]
        for connection in slow:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert slow[0].recv(1) == b""
        assert healthz(server)[0] == 200
        slow[-1].sendall(b"y\r\n\r\n")
        assert slow[-1].recv(4) == b"HTTP"


def test_what_was_served_is_counted(start):
    server = start()
    stream = server.read(text="To be", max_tokens=30, max_tokens_per_message=1)
    server.read(text="O", max_tokens=5)
    until(lambda: server.metric("gruve_requests_total", model="tiny", finish_reason="length") == 2)
    metrics = {name: found.get((("model", "tiny"),)) for name, found in server.metrics().items()}
    assert metrics["gruve_prompt_tokens_total"] == 6
    assert metrics["gruve_generation_tokens_total"] == 35
    assert metrics["gruve_time_to_first_token_seconds_count"] == 2
    assert metrics["gruve_tokens_per_message_sum"] == 35
    assert metrics["gruve_tokens_per_message_count"] == metrics["gruve_inter_message_seconds_count"] + 2
    assert metrics["gruve_queue_seconds_count"] == 2
    # A prompt token and a generated one are each a step; of a prompt's last token and the first drawn one is a step.
    assert metrics["gruve_batch_rows_sum"] <= 6 + 35
    assert len(stream.tokens) == 30


def test_the_gauges_show_running_and_waiting_sequences(start):
    server = start(slots=2)
    calls = [server.generate(max_tokens_per_second=HELD) for _ in range(5)]
    for call in calls:
        next(call)
    until(lambda: server.metric("gruve_requests_running", model="tiny") == 2)
    assert server.metric("gruve_requests_waiting", model="tiny") == 3
    for call in calls:
        call.cancel()
    until(lambda: server.metric("gruve_requests_running", model="tiny") == 0)
    assert server.metric("gruve_requests_waiting", model="tiny") == 0
    until(lambda: server.metric("gruve_requests_total", model="tiny", finish_reason="cancelled") == 5)


def test_metrics_distinguish_failed_and_replayed_streams_from_decoded_ones(start):
    server = start()
    session = server.create()
    for _ in range(3):
        server.read(session_id=session, generation_id="a", text="O", max_tokens=4)
    assert server.metric("gruve_prompt_tokens_total", model="tiny") == 1
    assert server.metric("gruve_generation_tokens_total", model="tiny") == 4
    assert server.metric("gruve_queue_seconds_count", model="tiny") == 1
    assert server.metric("gruve_sessions", where="memory") == 1


@pytest.mark.parametrize("code", ["OK", "INVALID_ARGUMENT", "CANCELLED"])
def test_every_rpc_is_counted_with_its_status(start, code):
    server = start()
    labels = {"grpc_type": "server_stream", "grpc_service": "gruve.v1.GenerationService", "grpc_method": "Generate"}
    messages = 0
    if code == "OK":
        messages = len(read(server.generate(max_tokens=9)).messages)
    elif code == "INVALID_ARGUMENT":
        refusal(lambda: server.generate(max_tokens=0))
    else:
        call = server.generate(max_tokens_per_second=HELD)
        token(call)
        messages = 2
        call.cancel()
    until(lambda: server.metric("grpc_server_handled_total", grpc_code=code, **labels) == 1)
    assert server.metric("grpc_server_started_total", **labels) == 1
    assert server.metric("grpc_server_msg_received_total", **labels) == 1
    assert server.metric("grpc_server_handling_seconds_count", **labels) == 1
    assert server.metric("grpc_server_msg_sent_total", **labels) == messages


def test_an_rpc_with_one_answer_is_counted_with_it_and_its_duration(start):
    server = start()
    server.create()
    labels = {"grpc_type": "unary", "grpc_service": "gruve.v1.SessionService", "grpc_method": "CreateSession"}
    until(lambda: server.metric("grpc_server_handled_total", grpc_code="OK", **labels) == 1)
    assert server.metric("grpc_server_msg_sent_total", **labels) == 1
    assert 0 < server.metric("grpc_server_handling_seconds_sum", **labels) < PATIENCE_S


def test_a_scraper_that_asks_for_openmetrics_gets_it_with_units(server):
    server.read(max_tokens=2)
    url = f"http://127.0.0.1:{server.serving.metrics_port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        kind, text = answer.headers["Content-Type"], answer.read().decode()
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics_families(text)}
    timed = [name for name in families if name.endswith("_seconds") and name.startswith(("gruve_", "grpc_"))]
    assert {"gruve_time_to_first_token_seconds", "grpc_server_handling_seconds"} <= set(timed)
    assert {families[name].unit for name in timed} == {"seconds"}
    assert families["gruve_session_memory_bytes"].unit == "bytes"
