"""Start and end of a server: ports, signals, and every accepted request is answered."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.errors import CannotListen, ModelUnknown
from gruve.ports import explain_listen_failure
from gruve.serve.endings import run_until_ending, signals
from gruve.serve.server import ServeConfig, serve
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from server_process import KEY, Process, drain
from serving import HELD, PATIENCE_S, Gate, Read, broken, refusal, token, until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel, service=""):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def test_draining_is_reported_and_refuses_new_work_while_streams_continue(start):
    server = start()
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service="tiny"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    whole = server.read(text="O", max_tokens=30, sampling=s.SamplingParameters(seed=1))
    gate = Gate(server.host("tiny"))
    running = server.generate(text="O", max_tokens=30, sampling=s.SamplingParameters(seed=1))
    messages = [next(running)]
    _, task = drain(server)
    assert next(watch).status == NOT_SERVING
    assert {health(server.channel, name) for name in ("", "tiny", "gruve.v1.GenerationService")} == {NOT_SERVING}
    for ask in (server.generate, server.create, lambda: server.models.ListModels(m.ListModelsRequest())):
        failure = refusal(ask)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.retry_after_s == pytest.approx(1.0)
    assert not task.done()
    gate.open()
    assert Read([*messages, *running]).tokens == whole.tokens
    until(task.done)
    watch.cancel()


def test_streams_that_outlast_the_drain_are_handed_over_with_their_position(start):
    server = start(slots=2, drain_s=0.05)
    session = server.create()
    running = server.generate(session_id=session, generation_id="a", max_tokens_per_second=HELD)
    begun = token(running)
    others = [server.generate(max_tokens_per_second=HELD) for _ in range(3)]  # two of them wait
    starts = [next(call) for call in others]
    _, task = drain(server)
    until(task.done)
    server.close()
    messages, failure = broken(lambda: running)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "HANDED_OVER")
    assert failure.metadata["next_position"] == str(begun.position + 1)
    assert failure.retry_after_s is not None
    assert messages[-1].end.finish_reason == g.FINISH_REASON_HANDED_OVER
    assert [start.HasField("start") for start in starts] == [True] * 3
    assert {refusal(lambda: call).reason for call in others} == {"HANDED_OVER"}  # noqa: B023 - called at once


def test_a_second_signal_hands_over_at_once(start):
    server = start(drain_s=3_600.0)
    running = server.generate(max_tokens_per_second=HELD)
    token(running)
    asked, task = drain(server)
    assert refusal(server.create).reason == "DRAINING"
    assert not task.done()
    server.run(asked.put("drain"))
    until(task.done)
    server.close()
    assert refusal(lambda: running).reason == "HANDED_OVER"


def test_a_measure_that_is_cut_by_the_end_is_answered(start):
    server = start()
    host = server.host("tiny")
    gate = Gate(host)
    measured = server.generation.Score.future(g.ScoreRequest(model="tiny", text="To be, or not to be", window_tokens=1))
    gate.let(0)
    drain(server, "hand_over")
    server.close()
    until(lambda: host.engine._intake._closing)  # before that the engine may still measure all of it
    gate.open()
    failure = refusal(measured.result)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


def test_sigterm_lets_a_stream_end_and_the_process_goes_quietly(tiny_repository):
    with Process(tiny_repository) as server, server.connect() as channel:
        assert set(server.line) == {"event", "port", "metrics_port", "models"}
        assert (server.line["event"], server.line["models"]) == ("serving", ["tiny"])
        url = f"http://127.0.0.1:{server.line['metrics_port']}/metrics"
        assert b"gruve_build_info" in urllib.request.urlopen(url, timeout=PATIENCE_S).read()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(g.GenerateRequest(model="tiny", max_tokens=60, max_tokens_per_second=100.0))
        token(call)
        server.signal(signal.SIGTERM)
        assert sum(len(message.token_ids) for message in call) == 59
        code, out, err = server.end()
        assert (code, out) == (0, "")
        assert [json.loads(line)["level"] for line in err.splitlines()] == ["info"] * 3


def test_two_signals_hand_over_and_a_third_does_not_cut_that_short(tiny_repository):
    with Process(tiny_repository) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        calls = [stub.Generate(g.GenerateRequest(model="tiny", max_tokens_per_second=HELD)) for _ in range(20)]
        for call in calls:
            token(call)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            server.signal(number)
        failures = [refusal(lambda: call) for call in calls]  # noqa: B023 - called at once
        assert {(f.reason, f.metadata.get("next_position")) for f in failures} == {("HANDED_OVER", "2")}
        assert server.end()[0] == 0


@pytest.mark.parametrize(("before", "endings"), [(signal.SIG_DFL, 1), (signal.SIG_IGN, 0)])
async def test_sighup_ends_a_server_unless_it_was_started_with_nohup(before, endings):
    previous = signal.signal(signal.SIGHUP, before)
    try:
        with signals() as queue:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            given = [await queue.get() for _ in range(endings + 1)]
            assert (given, queue.empty()) == (["drain"] * (endings + 1), True)
    finally:
        signal.signal(signal.SIGHUP, previous)


async def test_a_signal_that_comes_while_models_load_ends_the_server_before_it_is_ready(tiny_repository):
    def choose(model, config):
        signal.raise_signal(signal.SIGTERM)
        return choose_backend(model, config)

    async def ready(serving):
        raise AssertionError("it became ready")

    decode = DecodeConfig(device="cpu", threads=1)
    await serve(ServeConfig(models=tiny_repository, port=0, metrics_port=0, decode=decode), ready, choose)


async def test_a_start_that_fails_together_with_a_signal_is_no_failure():
    async def start():
        endings.put_nowait("drain")
        raise CannotListen("the same signal ended what it waited for")

    endings = asyncio.Queue()
    assert await run_until_ending(start(), endings) == "drain"


def test_a_killed_servers_stream_goes_on_bit_for_bit_on_another(tiny_repository, start):
    asked = {"model": "tiny", "text": "O", "max_tokens": 80, "sampling": s.SamplingParameters(seed=11)}
    with Process(tiny_repository) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(g.GenerateRequest(max_tokens_per_second=50.0, new_session=None, **asked))
        head = [next(call), token(call), token(call)]
        server.signal(signal.SIGKILL)
        rest, failure = broken(lambda: call)
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        head += rest
    other = start(session_key=KEY.encode())
    whole = other.read(**asked)
    position = head[-1].position + len(head[-1].token_ids)
    assert head[0].start.numerics_id == whole.start.numerics_id
    tail = other.read(from_position=position, **asked)
    assert Read([*head, *tail.messages]).tokens == whole.tokens
    assert Read([*head, *tail.messages]).text == whole.text


def test_session_ids_are_authentic_wherever_the_key_is_shared(start):
    one, two, stranger = start(session_key=b"shared"), start(session_key=b"shared"), start()
    session = one.create()
    assert refusal(lambda: two.session(session)).reason == "SESSION_EXPIRED"
    assert refusal(lambda: stranger.session(session)).reason == "SESSION_UNKNOWN"


@pytest.mark.parametrize("field", ["port", "metrics_port"])
def test_a_port_in_use_is_an_error_that_names_it(start, field):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            start(**{field: port})


def test_two_servers_never_share_a_port(start):
    port = start().serving.port
    with pytest.raises(CannotListen, match=str(port)):
        start(port=port)


def test_a_port_in_use_ends_the_process_with_one_line(tiny_repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Process(tiny_repository, "--port", str(port), "--log-level", "warning") as server:
            code, out, err = server.end()
    assert (code != 0, out) == (True, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert len(err.splitlines()) == 1


def test_each_reason_why_a_server_cannot_listen_has_its_own_message(start, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"port {port} is in use; give another port"):
            start(port=port)
    with pytest.raises(CannotListen, match=r"'no-such-host.invalid' is neither an IP address nor the name of a host"):
        start(host="no-such-host.invalid")
    with pytest.raises(CannotListen, match=r"'192.0.2.1' is not an address of this machine"):
        start(host="192.0.2.1")  # reserved for documentation

    def refuse(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)  # root is allowed to
    why = explain_listen_failure("127.0.0.1", 80)
    assert why == "this user has no permission to listen on port 80; ports below 1024 need a privilege"


@pytest.mark.parametrize("field", ["host", "metrics_host"])
def test_a_host_that_does_not_exist_ends_the_server_with_its_name(start, field):
    with pytest.raises(CannotListen, match=r"'no-such-host.invalid'"):
        start(**{field: "no-such-host.invalid"})


@pytest.mark.parametrize("broken_one", [False, True])
def test_a_repository_without_a_model_that_serves_is_refused(start, tmp_path, broken_one):
    if broken_one:
        (tmp_path / "half").mkdir()
    with pytest.raises(ModelUnknown, match=r"half: config.json" if broken_one else "no folder with a model"):
        start(models=tmp_path)


def test_a_folder_of_many_other_things_is_refused_in_a_short_error(start, tmp_path, caplog):
    for i in range(300):
        (tmp_path / f"folder-{i:03}").mkdir()
    with pytest.raises(ModelUnknown) as refused:
        start(models=tmp_path)
    assert "and 297 more folders" in str(refused.value)
    assert len(str(refused.value)) < 1_000
    assert len([record for record in caplog.records if "broken" in record.message]) == 21


def test_the_folder_of_one_model_is_served_as_that_model(start, tiny_repository, monkeypatch):
    server = start(models=tiny_repository / "tiny")
    assert server.serving.models == ("tiny",)
    assert server.read(max_tokens=2).start.model == "tiny"
    monkeypatch.chdir(tiny_repository / "tiny")
    assert start(models=Path()).serving.models == ("tiny",)
