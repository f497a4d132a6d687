"""How a client holds its connections: addresses, channel options, stubs, and which of them a call tries next.

Serves the sync and the async client alike, and so never waits.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from gruve.client.failure import CallFailed
from gruve.client.resume import Attempts, Reconnect
from gruve.v1 import generation_pb2_grpc, model_pb2_grpc, session_pb2_grpc

DEFAULT_ADDRESS = "localhost:50051"
KEEPALIVE_S = 20.0
"""How long a connection may be silent before it is asked whether anybody is there, with half as long to answer."""
LOOPBACK = ("localhost:", "127.0.0.1:", "[::1]:")


class Stubs:
    """The services behind one channel, sync or async."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.generations = generation_pb2_grpc.GenerationServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)


def addresses_of(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """One or more gRPC targets; raises `ValueError` where there is none."""
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found or not all(found):
        raise ValueError(f"addresses is {addresses!r}; at least one 'host:port' is needed")
    return found


def channel_options(address: str, keepalive_s: float) -> list[tuple[str, Any]]:
    """The options of a channel that is meant to last and to notice when the other side is gone."""
    keepalive_ms = int(keepalive_s * 1000)
    options: list[tuple[str, Any]] = [
        # A name that resolves to several servers is spread over all of them.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own waits (1 s growing to 2 minutes) would outlast this client's patience.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.startswith(LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))
    return options


class Connections:
    """One channel for each address, opened by `connect` when it is first used."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        connect: Callable[[str, list[tuple[str, Any]]], Any],
        reconnect: Reconnect | None,
        keepalive_s: float,
    ) -> None:
        self.reconnect = reconnect or Reconnect()
        self.closed = False
        self.answered = False
        """Whether a server has ever answered."""
        self.preferred = 0
        """The index of the address that answered last."""
        self._addresses = addresses_of(addresses)
        self._connect = connect
        self._keepalive_s = keepalive_s
        self._opening = threading.Lock()
        self._stubs: dict[int, Stubs] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def stubs(self, index: int) -> Stubs:
        """The stubs of an address; raises `CallFailed` once the client is closed."""
        if self.closed:
            raise CallFailed(grpc.StatusCode.CANCELLED, "the client is closed")
        with self._opening:
            if index not in self._stubs:
                address = self._addresses[index]
                self._stubs[index] = Stubs(self._connect(address, channel_options(address, self._keepalive_s)))
            return self._stubs[index]

    def close(self) -> list[Any]:
        """Forbids further calls, and returns the channels for the caller to close."""
        self.closed = True
        return [stubs.channel for stubs in self._stubs.values()]


class Attempt:
    """What a method goes through until one of its calls succeeds: which address is next, and how much time is left."""

    def __init__(self, connections: Connections, timeout_s: float | None) -> None:
        self.lost = False
        """Whether a call was lost whose outcome nobody knows."""
        self._connections = connections
        self._attempts = Attempts(connections.reconnect, len(connections), connections.answered)
        self._index = connections.preferred
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s

    def stubs(self) -> Stubs:
        """Where the next call goes."""
        return self._connections.stubs(self._index)

    def remaining_s(self) -> float | None:
        """How long the next call may take; None if forever."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def succeeded(self) -> None:
        """A call has brought something new."""
        self._attempts.succeeded()
        self._connections.answered = True
        self._connections.preferred = self._index

    def failed(self, failure: CallFailed) -> float:
        """How many seconds to wait before the next call; raises what the method is to raise if there is to be none."""
        if self._connections.closed:
            raise CallFailed(grpc.StatusCode.CANCELLED, "the client was closed during the call")
        self.lost = self.lost or failure.connection_lost
        delay_s = self._attempts.failed(failure)
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= delay_s:
            raise failure
        self._index = (self._index + 1) % len(self._connections)
        return delay_s
