"""Transports of both clients that play a script in place of gRPC, and record what the client does."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from gruve.client import AsyncClient, CallFailed, Client, ConnectionLost, Reconnect

Step = Any
"""A message, or the `CallFailed` with which a call ends."""


class Call:
    """One call: its steps, then status OK."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = iter(steps)
        self.cancelled = False

    def step(self) -> Any:
        step = copy.deepcopy(next(self._steps, None))  # the clients add to what they receive
        if isinstance(step, CallFailed):
            raise step
        return step

    def response(self) -> Any:
        """The one response of a call, which cannot end with OK and without one."""
        response = self.step()
        if response is None:
            raise ConnectionLost(grpc.StatusCode.UNAVAILABLE, "the script has ended")
        return response

    def cancel(self) -> None:
        self.cancelled = True


class Script:
    """The calls of a server in order; those after the last one end at once. Stands for the channel as well."""

    def __init__(self, calls: Iterable[Iterable[Step]]) -> None:
        self._calls = iter(calls)
        self.log: list[Any] = []
        """Requests, delays and cancelled calls, in order."""
        self.begun: list[Call] = []

    def connect(self, address: str, *_: Any) -> Script:
        return self

    def unary_unary(self, path: str, **_: Any) -> Any:
        return self._begin

    unary_stream = stream_stream = unary_unary

    def _begin(self, request: Any, timeout: float | None, metadata: Any) -> Call:
        if request is not None:
            self.log.append(request.SerializeToString(deterministic=True))
        self.begun.append(Call(next(self._calls, ())))
        return self.begun[-1]

    def check_caller(self) -> None:
        pass

    def open(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Any) -> Call:
        return rpc(request, timeout=timeout_s, metadata=metadata)

    def drop(self, stream: Any) -> None:
        pass

    def delay(self, delay_s: float) -> None:
        self.log.append(delay_s)


class ThreadsTransport(Script):
    def call(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        return rpc(request, timeout=timeout_s, metadata=metadata).response()

    def read(self, call: Call) -> Any:
        return call.step()

    def texts(self, streams: Any) -> list[str]:
        return [stream.text() for stream in streams]

    def sleep(self, delay_s: float) -> None:
        self.delay(delay_s)

    def close(self, channels: Any) -> None:
        pass


class AsyncioTransport(Script):
    async def call(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Any) -> Any:
        return rpc(request, timeout=timeout_s, metadata=metadata).response()

    async def read(self, call: Call) -> Any:
        return call.step()

    async def texts(self, streams: Any) -> list[str]:
        return [await stream.text() for stream in streams]

    async def sleep(self, delay_s: float) -> None:
        self.delay(delay_s)

    async def close(self, channels: Any) -> None:
        pass


class RecordingOutbox:
    """Records the messages of a conversation in the script's log."""

    log: list[Any]

    def put(self, request: Any) -> None:
        self.log.append(request.SerializeToString(deterministic=True))

    def close(self) -> None:
        self.log.append("closed")

    def messages(self) -> None:
        return None


POLICY = Reconnect(max_reconnects=4, first_reconnects=2, backoff_s=0)


def both(calls: list[list[Step]], use_sync: Any, use_async: Any) -> tuple[list[Any], list[Any]]:
    """What `use_sync(client)` and `use_async(client)` do and observe with a server that plays the script."""
    seen: list[list[Any]] = []
    for kind, transport, package in (
        (Client, ThreadsTransport, "gruve.client.sync"),
        (AsyncClient, AsyncioTransport, "gruve.client.aio"),
    ):
        script = transport(calls)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("uuid.uuid4", lambda: uuid.UUID(int=7))
            patch.setattr(f"{package}.client.Transport", lambda script=script: script)
            patch.setattr(f"{package}.stream.Outbox", type("Outbox", (RecordingOutbox,), {"log": script.log}))
            client = kind("a:1", reconnect=POLICY, on_reconnect=lambda event, log=script.log: log.append(plain(event)))
            try:
                result = use_sync(client) if kind is Client else asyncio.run(use_async(client))
            except CallFailed as failure:
                result = plain(failure)
        seen.append([result, *script.log, [call.cancelled for call in script.begun]])
    return seen[0], seen[1]


def plain(value: Any) -> Any:
    """An event or a failure in a form that compares by value."""
    if isinstance(value, CallFailed):
        return (type(value).__name__, str(value))
    return (type(value).__name__, *(str(getattr(value, name)) for name in value.__dataclass_fields__))
