"""The connections of a client: addresses, channel options, stubs, and the address that a call tries next.

Both clients share it; nothing here waits.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import grpc

from gruve.client.credentials import Access, Metadata
from gruve.client.errors import CallFailed, Cancelled, DeadlineExceeded
from gruve.client.retry import Attempts, OnReconnect, Progress, Reconnect, Reconnected, Reconnecting
from gruve.v1 import generation_pb2_grpc, model_pb2_grpc, session_pb2_grpc

DEFAULT_ADDRESS = "localhost:50051"
KEEPALIVE_S = 12.0
"""A connection that is silent for this time is pinged, and is lost if no answer comes within half of it.

So one that carries nothing is lost 18 s after the other end has gone silent. One that carries data is pinged by gRPC
itself, and is lost 6 s after that. gruve servers refuse pings more often than every 10 s. A connection whose process
has died is lost at once.
"""
KEEPALIVE_LEAST_S, KEEPALIVE_MOST_S = 10.0, 2_000_000.0
"""The least is that of the servers; gRPC counts milliseconds in 32 bits."""
LONGEST_TIMEOUT_S = 1e9
"""gRPC takes a longer time, after 31 years, for none at all."""
CLOSED_MEANWHILE = "the client was closed during the call"
FORKED = (
    "{} in process {}, from which this one was forked, where gRPC's connections do not work. Make a client in each "
    "process, and start processes by 'spawn' or 'forkserver' of multiprocessing, or fork before the first call"
)
LOOPBACK = ("localhost:", "127.0.0.1:", "[::1]:")
ChannelOptions = Sequence[tuple[str, Any]]
"""Names and values of gRPC's channel arguments."""


class ThisProcess:
    """The id of this process, for each message of a stream: `os.getpid` is a system call."""

    id = os.getpid()

    @classmethod
    def forked(cls) -> None:
        """Takes the id of a process that was just forked."""
        cls.id = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=ThisProcess.forked)


class ClientOptions(TypedDict, total=False):
    """What a client can be given beside addresses and credentials; see `Client`."""

    reconnect: Reconnect | None
    keepalive_s: float
    on_reconnect: OnReconnect | None
    interceptors: Sequence[Any]
    channel_options: ChannelOptions


class Stubs:
    """The services behind one channel, sync or async."""

    def __init__(self, channel: Any, signature: tuple[Any, ...] = ()) -> None:
        """`signature` is that of the credentials that the channel was made with."""
        self.channel = channel
        self.signature = signature
        self.generations = generation_pb2_grpc.GenerationServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)


def addresses_of(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """One or more gRPC targets; raises `ValueError` if there is none."""
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found or not all(found):
        raise ValueError(f"addresses is {addresses!r}; at least one 'host:port' is needed")
    return found


def _options_of(address: str, keepalive_s: float) -> list[tuple[str, Any]]:
    """The options of a channel that reconnects soon and detects a dead server."""
    keepalive_ms = int(keepalive_s * 1000)
    options: list[tuple[str, Any]] = [
        # A name that resolves to several servers is spread over all of them.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        # gRPC pings by itself while data flows, to size its windows, and sends no other ping before that one is
        # answered or timed out: by default after a minute.
        ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own delays (1 s growing to 2 minutes) are longer than the retries of this client.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # By this name gRPC calls how long making a connection may take. TLS needs some three round trips; a silent
        # host keeps a call from the next address for this time.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.startswith(LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))
    return options


class Connections:
    """One channel for each address, created by `connect` at its first use.

    `connect` takes an address, channel options, credentials and interceptors.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        connect: Callable[[str, list[tuple[str, Any]], grpc.ChannelCredentials | None, Sequence[Any]], Any],
        reconnect: Reconnect | None,
        keepalive_s: float,
        on_reconnect: OnReconnect | None,
        access: Access,
        channel_options: ChannelOptions = (),
    ) -> None:
        """Raises `ValueError` if there is no address, or for a `keepalive_s` that servers or gRPC refuse."""
        if not KEEPALIVE_LEAST_S <= keepalive_s <= KEEPALIVE_MOST_S:
            raise ValueError(
                f"keepalive_s is {keepalive_s!r}; must be {KEEPALIVE_LEAST_S:g} to {KEEPALIVE_MOST_S:,.0f}"
            )
        self.reconnect = reconnect or Reconnect()
        self.on_reconnect = on_reconnect
        self.closed = False
        self.answered = False
        """Whether a server has ever answered."""
        self.preferred = 0
        """The index of the address that answered last."""
        self.addresses = addresses_of(addresses)
        self.access = access
        self._connect = connect
        self._keepalive_s = keepalive_s
        self._channel_options = channel_options
        self._opening = threading.Lock()
        self._stubs: dict[int, Stubs] = {}
        self._replaced: list[Stubs] = []
        """Those whose credentials have changed; calls on them may still run."""
        self._process: int | None = None
        """The process of the first call."""

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that made the connections.

        Then a call would hang, and so would a lock that another thread held.
        """
        return self._process is not None and self._process != ThisProcess.id

    def check_process(self) -> None:
        """Raises `RuntimeError` if this process has inherited the connections."""
        if self.inherited:
            raise RuntimeError(FORKED.format("this client made its first call", self._process))

    def stubs(self, index: int) -> Stubs:
        """The stubs of an address; raises `Cancelled` once the client is closed, `RuntimeError` in a forked process."""
        self.check_process()
        self._process = ThisProcess.id
        with self._opening:
            if self.closed:
                raise Cancelled(grpc.StatusCode.CANCELLED, "the client is closed")
            if index not in self._stubs:
                address, access = self.addresses[index], self.access
                options, signature = _options_of(address, self._keepalive_s), access.signature()
                options += self._channel_options
                channel = self._connect(address, options, access.channel_credentials(), access.interceptors)
                self._stubs[index] = Stubs(channel, signature)
            return self._stubs[index]

    def lost(self, index: int) -> None:
        """Has the next call to an address make a new channel if the files of the credentials have changed.

        gRPC reads no files again by itself. Calls that run on the old channel continue.
        """
        with self._opening:
            stubs = self._stubs.get(index)
            if stubs is not None and stubs.signature != self.access.signature():
                self._replaced.append(self._stubs.pop(index))

    def close(self) -> list[Any]:
        """Forbids further calls, and returns the channels for the caller to close: none of another process."""
        self.closed = True
        if self.inherited:
            return []
        with self._opening:
            stubs = [*self._stubs.values(), *self._replaced]
            self._stubs, self._replaced = {}, []  # gRPC's asyncio keeps a forked process from using it while they exist
            return [each.channel for each in stubs]


class Attempt:
    """One method call over all its rpc calls: the address of the next one, the time left, and the events."""

    def __init__(self, connections: Connections, timeout_s: float | None, progress: Progress | None = None) -> None:
        """`progress` is that of all calls which the method makes at the same time; None if there is one alone.

        Raises `ValueError` if `timeout_s` is not a number.
        """
        if timeout_s is not None and math.isnan(timeout_s):
            raise ValueError(f"timeout_s is {timeout_s!r}; must be a number of seconds")
        self.lost = False
        """Whether a connection was lost during a call, so that it is unknown whether the server carried it out."""
        self._connections = connections
        self._progress = progress or Progress()
        self._attempts = Attempts(
            connections.reconnect, len(connections.addresses), connections.answered, self._progress
        )
        self._index = connections.preferred
        self._asked = 0
        self._timeout_s = timeout_s
        self._deadline_s: float | None = None
        if timeout_s is not None and timeout_s <= LONGEST_TIMEOUT_S:
            self._deadline_s = time.monotonic() + timeout_s

    def beside(self) -> Attempt:
        """That of another call which the same method makes: it has the same deadline, and progress counts for both."""
        other = Attempt(self._connections, self._timeout_s, self._progress)
        other._deadline_s = self._deadline_s
        return other

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that made the call."""
        return self._connections.inherited

    def check_process(self) -> None:
        """Raises `RuntimeError` if this process was forked from the one that made the call."""
        self._connections.check_process()

    def stubs(self) -> Stubs:
        """The stubs of the address that the next call goes to."""
        return self._connections.stubs(self._index)

    def remaining_s(self) -> float | None:
        """How long the next call may take; None without a deadline."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def metadata(self) -> Metadata:
        """What the next call sends."""
        return self._connections.access.call_metadata()

    def succeeded(self) -> None:
        """Records that a call made progress."""
        retries = self._attempts.failed_in_a_row
        self._attempts.succeeded()
        self._connections.answered = True
        self._connections.preferred = self._index
        if retries and self._connections.on_reconnect is not None:
            self._connections.on_reconnect(Reconnected(self._address, retries))

    def failed(self, failure: CallFailed) -> float:
        """Returns the delay before the next call in seconds; raises the method's exception if there is to be none."""
        if self._connections.closed:
            if isinstance(failure, Cancelled):
                raise failure
            raise Cancelled(grpc.StatusCode.CANCELLED, CLOSED_MEANWHILE)
        if isinstance(failure, DeadlineExceeded) and not failure.reason and self._timeout_s is not None:
            failure.message = f"the call did not finish within timeout_s={self._timeout_s:g}"
        if failure.connection_lost:
            self.lost = True
            self._connections.lost(self._index)
        delay_s = self._attempts.failed(failure)
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= delay_s:
            raise failure
        failed, self._index = self._address, (self._index + 1) % len(self._connections.addresses)
        if self._connections.on_reconnect is not None:
            retry = self._attempts.failed_in_a_row
            self._connections.on_reconnect(Reconnecting(failed, self._address, delay_s, retry, failure))
        return delay_s

    def try_elsewhere(self, failure: CallFailed, *, repeatable: bool) -> bool:
        """Goes to the next address if the server may not stream the generation that is meant, unless all were asked.

        After a lost connection it goes on only if the control is `repeatable`: the server may have carried it out.
        """
        self._asked += 1
        self._index = (self._index + 1) % len(self._connections.addresses)
        elsewhere = failure.reason == "GENERATION_UNKNOWN" or (repeatable and failure.connection_lost)
        return elsewhere and self._asked < len(self._connections.addresses)

    @property
    def _address(self) -> str:
        return self._connections.addresses[self._index]
