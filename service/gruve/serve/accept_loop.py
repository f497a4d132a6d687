"""Accepts calls in one loop for each method, outside grpcio's accept loop, which is slow and can be ended by a client.

grpcio waits for the next call of all methods at once, which takes longer with every method: with those of this server,
a tenth of the time of a refused call. It also decodes the `:path` of each call of a method that is not registered in
that loop. A path that is not UTF-8 ends it: the server takes no more calls, and gRPC's core writes into memory that
Python has freed, so the process crashes or hangs some time later (seen with 1.85.1). Every method of this server is
registered, so here all other calls are answered UNIMPLEMENTED, whatever their path is.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined] # grpcio has no public way to its server


def make_server(interceptors: Sequence[Any], options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Makes a gRPC server. Its services must register their methods, as stubs since grpcio 1.63 do."""
    plain = cygrpc.AioServer
    cygrpc.AioServer = _AioServer
    try:
        return grpc.aio.server(interceptors=interceptors, options=options)
    finally:
        cygrpc.AioServer = plain


class _AioServer(cygrpc.AioServer):  # type: ignore[misc] # untyped
    """grpcio's server. For each method its accept loop gets a future that ends with the server, and no call."""

    def __init__(self, loop: Any, thread_pool: Any, handlers: Any, interceptors: Any, *others: Any) -> None:
        super().__init__(loop, thread_pool, handlers, interceptors, *others)
        self._own_loop = loop
        self._own_interceptors = tuple(interceptors)
        self._own_handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        """Adds methods, by their paths."""
        super().add_registered_method_handlers(handlers)
        self._own_handlers.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """Starts to accept the calls of a registered method; for None, of all others."""
        if method is None:
            return self._own_loop.create_task(self._accept(self._request_call))
        request_call = functools.partial(self._request_registered_call, method)
        return self._own_loop.create_task(self._accept(request_call, method.decode()))

    async def _accept(self, request_call: Callable[[], Awaitable[Any]], method: str = "") -> None:
        """Serves each call in a task, until the server shuts down, which raises grpcio's own error for its loop."""
        loop, tasks = self._own_loop, set[asyncio.Task[None]]()
        resolver = cygrpc._MethodResolver([], self._own_handlers)
        while True:
            call = await request_call()
            answer = cygrpc._handle_rpc(method, resolver, self._own_interceptors, call, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(answer, call, loop, method))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
