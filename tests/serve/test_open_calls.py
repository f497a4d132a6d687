"""The calls that need no credentials: how large their requests are, and how many of them may be open."""

from __future__ import annotations

import queue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gruve.serve.calls import open_calls
from serving import PATIENCE_S, until

WATCH = "/grpc.health.v1.Health/Watch"


def first_code(call):
    """OK once a call has its first answer, else the status with which it ended."""
    try:
        next(call)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_stranger_cannot_hold_more_health_calls_open_than_the_bound(start, monkeypatch):
    monkeypatch.setattr(open_calls, "MAX_CALLS", 3)
    server, requests = start(), queue.SimpleQueue()
    health = health_pb2_grpc.HealthStub(server.channel)
    health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    silent = server.channel.stream_stream(WATCH)(iter(requests.get, None))

    def watch():
        return health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)

    watches = [watch(), watch()]
    assert [first_code(call) for call in watches] == 2 * [grpc.StatusCode.OK]
    assert first_code(watch()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    silent.cancel()
    requests.put(None)
    until(lambda: first_code(watch()) is grpc.StatusCode.OK)


@pytest.mark.parametrize("request_", [b"\n\xe8\x07" + 1_000 * b"x" + 30 * b"\x12\x00", b"\xff"])
@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
def test_a_health_request_that_is_large_or_malformed_is_refused_and_not_kept(start, method, request_):
    call = start().channel.unary_stream(f"/grpc.health.v1.Health/{method}")(request_, timeout=PATIENCE_S)
    assert first_code(call) is grpc.StatusCode.INVALID_ARGUMENT
