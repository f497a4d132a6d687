"""The gRPC calls, the waiting and the queue of outgoing messages of the client for plain threads.

`gruve.client.aio.transport` has the same names for asyncio. Everything else of the two clients is one source.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import grpc

from gruve.client.completions import MAX_AT_ONCE
from gruve.client.connection import CLOSED_MEANWHILE
from gruve.client.credentials import Metadata
from gruve.client.errors import Cancelled, failure_of
from gruve.v1 import generation_pb2

CLOSE_WITHIN_S = 2.0
"""How long `close` waits for gRPC to close the channels."""
Lock = threading.Lock


class Transport:
    """Makes the calls of one client. Every failure of gRPC is raised as `CallFailed`."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def check_caller(self) -> None:
        """Any thread may call."""

    def connect(
        self,
        address: str,
        options: list[tuple[str, Any]],
        credentials: grpc.ChannelCredentials | None,
        interceptors: Sequence[Any],
    ) -> grpc.Channel:
        """Creates a channel; it connects at its first call."""
        if credentials is None:
            channel = grpc.insecure_channel(address, options=options)
        else:
            channel = grpc.secure_channel(address, credentials, options=options)
        return grpc.intercept_channel(channel, *interceptors) if interceptors else channel

    def call(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Metadata) -> Any:
        """Calls an rpc with one response."""
        with self._failures():
            return rpc(request, timeout=timeout_s, metadata=metadata)

    def open(self, rpc: Any, request: Any, timeout_s: float | None, metadata: Metadata) -> Any:
        """Begins a call with a stream of responses."""
        with self._failures():
            return rpc(request, timeout=timeout_s, metadata=metadata)

    def read(self, call: Any) -> Any:
        """Returns the next message of a stream, None after the last one."""
        with self._failures():
            return next(call, None)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise failure_of(error) from error
        except ValueError as error:  # gRPC's for a channel that another thread has closed
            if not self._closed.is_set():
                raise
            raise Cancelled(grpc.StatusCode.CANCELLED, CLOSED_MEANWHILE) from error

    def texts(self, streams: Iterable[Any]) -> list[str]:
        """Reads streams to their ends, `MAX_AT_ONCE` at a time, and returns their texts in order.

        A stream is taken when its turn comes. If one fails, the others are cancelled.
        """
        later, texts = iter(streams), list[str]()
        first = list(itertools.islice(later, MAX_AT_ONCE))
        if len(first) <= 1:
            return [stream.text() for stream in first]
        reading: dict[Future[str], tuple[int, Any]] = {}
        with ThreadPoolExecutor(len(first), "gruve-complete") as pool:
            try:
                for stream in itertools.chain(first, later):
                    reading[pool.submit(stream.text)] = len(texts), stream
                    texts.append("")
                    if len(reading) == len(first):
                        _take_finished(reading, texts)
                while reading:
                    _take_finished(reading, texts)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for _, stream in reading.values():
                    stream.cancel()
                raise
        return texts

    def drop(self, stream: Any) -> None:
        """Cancels a stream that its reader has dropped."""
        stream.cancel()

    def sleep(self, delay_s: float) -> None:
        """Waits, but not beyond `close`."""
        self._closed.wait(delay_s)

    def close(self, channels: Sequence[grpc.Channel]) -> None:
        """Closes the channels and ends every `sleep`."""
        self._closed.set()
        # gRPC waits for each call that it began, and waits forever for one that Ctrl-C interrupted.
        closing = [threading.Thread(target=channel.close, daemon=True) for channel in channels]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(CLOSE_WITHIN_S)


def _take_finished(reading: dict[Future[str], tuple[int, Any]], texts: list[str]) -> None:
    """Waits until a text is there, and moves those that are to their places."""
    for future in wait(reading, return_when=FIRST_COMPLETED).done:
        number, _ = reading.pop(future)
        texts[number] = future.result()


class Outbox:
    """The messages that a conversation sends, in order, until it is closed or dropped."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[generation_pb2.ConverseRequest | None] = queue.SimpleQueue()

    def __del__(self) -> None:
        self.close()

    def put(self, request: generation_pb2.ConverseRequest) -> None:
        """Appends a message."""
        self._queue.put(request)

    def close(self) -> None:
        """Ends the messages, and with them the thread in which gRPC waits for the next one."""
        self._queue.put(None)

    def messages(self) -> Iterator[generation_pb2.ConverseRequest]:
        """What gRPC sends. It refers to the queue alone, so that a dropped conversation is not kept alive by it."""
        return iter(self._queue.get, None)
