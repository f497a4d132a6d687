"""Accepts calls in one loop for each method, outside grpcio's accept loop, which is slow and can be ended by a client.

grpcio waits for the next call of all methods at once, which takes longer with every method: with those of this server,
a tenth of the time of a refused call. It also decodes the `:path` of each call of a method that is not registered in
that loop. A path that is not UTF-8 ends it: the server takes no more calls, and gRPC's core writes into memory that
Python has freed, so the process crashes or hangs some time later (seen with 1.85.1). Every method of this server is
registered, so here all other calls are answered UNIMPLEMENTED, whatever their path is.

A call can be refused here before its request is read, which takes a third of the time of a refusal by its method. So
can one of a method that has too many calls open, also calls whose requests never come.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined] # grpcio has no public way to its server

from gruve.serve.calls.reading import end_reading, set_reading

log = logging.getLogger(__name__)
LOOPS = 16
"""The calls of a method that are accepted in one turn of the event loop. With few, a flood of calls waits in gRPC's
core, oldest first, until their deadlines are over."""


class EndStatus(NamedTuple):
    """The status with which a call ends that is refused unread."""

    code: int
    """gRPC's number of the status."""
    message: str
    trailers: tuple[tuple[str, bytes], ...]


RefuseUnread = Callable[[str, Any, int], EndStatus | None]
"""Called with a method's path, gRPC's context of a call, and how many other calls of the method are open; None lets the
method serve the call."""


def make_server(
    interceptors: Sequence[Any], options: Sequence[tuple[str, Any]], refuse_unread: RefuseUnread = lambda *_: None
) -> grpc.aio.Server:
    """Makes a gRPC server. Its services must register their methods, as stubs since grpcio 1.63 do."""
    plain = cygrpc.AioServer
    cygrpc.AioServer = functools.partial(_AioServer, refuse_unread)
    try:
        return grpc.aio.server(interceptors=interceptors, options=options)
    finally:
        cygrpc.AioServer = plain


class _AioServer(cygrpc.AioServer):  # type: ignore[misc] # untyped
    """grpcio's server. For each method its accept loop gets a future that ends with the server, and no call."""

    def __init__(
        self, refuse_unread: RefuseUnread, loop: Any, thread_pool: Any, handlers: Any, interceptors: Any, *others: Any
    ) -> None:
        super().__init__(loop, thread_pool, handlers, interceptors, *others)
        self._own_loop = loop
        self._own_interceptors = tuple(interceptors)
        self._own_handlers: dict[str, Any] = {}
        self._refuse_unread = refuse_unread
        self._open: collections.Counter[str] = collections.Counter()
        """How many calls of each method are open."""

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        """Adds methods, by their paths."""
        super().add_registered_method_handlers(handlers)
        self._own_handlers.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """Starts to accept the calls of a registered method; for None, of all others."""
        if method is None:
            return self._own_loop.create_task(self._accept(self._request_call))
        request_call = functools.partial(self._request_registered_call, method)
        loops = (self._accept(request_call, method.decode()) for _ in range(LOOPS))
        return asyncio.gather(*loops)

    async def _accept(self, request_call: Callable[[], Awaitable[Any]], method: str = "") -> None:
        """Serves each call in a task, until the server shuts down, which raises grpcio's own error for its loop."""
        loop, tasks = self._own_loop, set[asyncio.Task[None]]()
        resolver = cygrpc._MethodResolver([], self._own_handlers)

        def end(task: asyncio.Task[None]) -> None:  # runs in the context in which the task began
            end_reading()
            tasks.discard(task)
            self._open[method] -= 1

        while True:
            call = await request_call()
            set_reading(None)  # the last call of this loop may have set one
            status = self._status_of_unread(method, call)
            if status is None:
                answer = cygrpc._handle_rpc(method, resolver, self._own_interceptors, call, loop, False)
                task = loop.create_task(cygrpc._schedule_rpc_coro(answer, call, loop, method))
            else:
                task = loop.create_task(_end(call, status, loop))
            tasks.add(task)
            self._open[method] += 1
            task.add_done_callback(end)

    def _status_of_unread(self, method: str, call: Any) -> EndStatus | None:
        """The status with which a call is refused unread, if it is. A fault of the check must not end the loop."""
        try:
            context = cygrpc._ServicerContext(call, None, None, self._own_loop)
            return self._refuse_unread(method, context, self._open[method])
        except Exception:
            log.exception("failed inside: a call could not be checked before it was read")
            return None


async def _end(call: Any, status: EndStatus, loop: asyncio.AbstractEventLoop) -> None:
    """Ends a call whose request was not read."""
    with contextlib.suppress(cygrpc.ExecuteBatchError):  # the client has gone
        headers = cygrpc.SendInitialMetadataOperation((), 0)
        await cygrpc._send_error_status_from_server(call, *status, headers, loop)
