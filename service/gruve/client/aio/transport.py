"""The gRPC calls, the waiting and the queue of outgoing messages of the client for asyncio.

`gruve.client.sync.transport` has the same names for plain threads. Everything else of the two clients is one source.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio

from gruve.client.completions import MAX_AT_ONCE
from gruve.client.connection import FORKED
from gruve.client.credentials import Metadata
from gruve.client.errors import CallFailed, ConnectionLost, failure_of
from gruve.v1 import generation_pb2

EOF = grpc.aio.EOF  # type: ignore[attr-defined] # the annotations of grpc lack it
Lock = contextlib.nullcontext
"""Methods of one event loop do not run at the same time, so their shared state needs no lock."""
CHANNELS: dict[int, weakref.WeakSet[grpc.aio.Channel]] = {}
"""The channels that exist, by the process that made them.

One thread of gRPC waits for the calls of all of them. A forked process does not have that thread, and gets none of its
own while it has inherited a channel.
"""


class Transport:
    """Makes the calls of one client. Every failure of gRPC is raised as `CallFailed`."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the first call, in which the channels were made."""

    def check_caller(self) -> None:
        """Raises `RuntimeError` in another event loop than that of the first call."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise RuntimeError(
                "this AsyncClient was used in another event loop, to which its connections belong; "
                "make one in each event loop, inside the function that asyncio.run runs"
            )

    def connect(
        self,
        address: str,
        options: list[tuple[str, Any]],
        credentials: grpc.ChannelCredentials | None,
        interceptors: Sequence[Any],
    ) -> grpc.aio.Channel:
        """Creates a channel, which connects at its first call.

        Raises `RuntimeError` in a process that was forked while another `AsyncClient` was open: a call would hang.
        """
        for process, inherited in list(CHANNELS.items()):
            if process != os.getpid() and inherited:
                raise RuntimeError(FORKED.format("an AsyncClient was open", process))
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)
        CHANNELS.setdefault(os.getpid(), weakref.WeakSet()).add(channel)
        return channel

    async def call(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Metadata) -> Any:
        """Calls an rpc with one response."""
        try:
            return await rpc(request, timeout=timeout_s, metadata=metadata)
        except (grpc.RpcError, asyncio.CancelledError) as error:
            raise _failure_of(error) from error

    def open(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Metadata) -> Any:
        """Begins a call with a stream of responses."""
        return rpc(request, timeout=timeout_s, metadata=metadata)

    async def read(self, call: Any) -> Any:
        """Returns the next message of a stream, None after the last one."""
        try:
            message = await call.read()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            raise _failure_of(error) from error
        return None if message is EOF else message

    async def texts(self, streams: Iterable[Any]) -> list[str]:
        """Reads streams to their ends, `MAX_AT_ONCE` at a time, and returns their texts in order.

        A stream is taken when its turn comes. If one fails, the others are cancelled.
        """
        later, texts = iter(streams), list[str]()
        first = list(itertools.islice(later, MAX_AT_ONCE))
        waiting = itertools.chain(first, later)

        async def read() -> None:
            for stream in waiting:  # which every reader takes from
                number = len(texts)
                texts.append("")
                texts[number] = await stream.text()

        readers = [asyncio.ensure_future(read()) for _ in first]
        try:
            await asyncio.gather(*readers)
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        return texts

    def drop(self, stream: Any) -> None:
        """Cancels a stream that its reader has dropped, in its event loop: the garbage collector runs in any thread.

        gRPC keeps a reference to a call that is not finished, so the call does not end by itself.
        """
        with contextlib.suppress(RuntimeError):  # of a closed event loop, which has ended its calls
            if self._loop is not None:
                self._loop.call_soon_threadsafe(stream.cancel)

    async def sleep(self, delay_s: float) -> None:
        """Waits, but not beyond `close`."""
        if delay_s <= 0.0:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), delay_s)

    async def close(self, channels: Sequence[Any]) -> None:
        """Closes the channels and ends every `sleep`."""
        self._closed.set()
        for channel in channels:
            await channel.close()


class Outbox:
    """The messages that a conversation sends, in order, until it is closed."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[generation_pb2.ConverseRequest | None] = asyncio.Queue()

    def put(self, request: generation_pb2.ConverseRequest) -> None:
        """Appends a message."""
        self._queue.put_nowait(request)

    def close(self) -> None:
        """Ends the messages, and with them the task in which gRPC waits for the next one."""
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[generation_pb2.ConverseRequest]:
        """What gRPC sends."""
        while (request := await self._queue.get()) is not None:
            yield request


def _failure_of(error: grpc.RpcError | asyncio.CancelledError) -> CallFailed:
    """Reads the failure of a call; raises the error itself if the task is being cancelled.

    gRPC raises `CancelledError` as well if only the call was cancelled, by this client or by a proxy.
    """
    if isinstance(error, grpc.RpcError):
        return failure_of(error)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    return ConnectionLost(grpc.StatusCode.CANCELLED, "the call was cancelled")
