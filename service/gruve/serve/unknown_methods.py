"""Answers calls of unknown methods outside grpcio's accept loop, which one of them could end.

grpcio decodes the `:path` of each call of a method that is not registered in the loop that accepts all calls. A path
that is not UTF-8 ends the loop: the server takes no more calls, and gRPC's core writes into memory that Python has
freed, so the process crashes or hangs some time later (seen with 1.85.1). Every method of this server is registered,
so here such calls are answered UNIMPLEMENTED, whatever their path is, and the loop never sees them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
    """grpcio's server, whose accept loop gets the calls of registered methods alone."""

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """The next call of a registered method; for None, of the other ones, a future that ends with the server."""
        if method is not None:
            return super()._make_request_call_future(method)
        return asyncio.get_running_loop().create_task(self._refuse_unknown_methods())

    async def _refuse_unknown_methods(self) -> None:
        """Answers UNIMPLEMENTED until the server shuts down, which raises grpcio's own error for its loop."""
        loop = asyncio.get_running_loop()
        methods = cygrpc._MethodResolver([], {})
        answering: set[asyncio.Task[None]] = set()
        while True:
            call = await self._request_call()
            answer = cygrpc._handle_rpc("", methods, (), call, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(answer, call, loop, ""))
            answering.add(task)
            task.add_done_callback(answering.discard)
