"""The calls with one response of the client for asyncio, which are made again where that may help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gruve.client.aio.transport import Transport
from gruve.client.connection import Attempt, Connections, Stubs
from gruve.client.errors import CallFailed
from gruve.v1 import generation_pb2


class Calls:
    """The calls with one response of one client."""

    def __init__(self, transport: Transport, connections: Connections) -> None:
        self._transport = transport
        self._connections = connections

    async def control(
        self, request: generation_pb2.ControlRequest, timeout_s: float | None
    ) -> generation_pb2.ControlResponse:
        """Steers a generation at the first server that streams it; no server is asked twice.

        An `insert_prompt` or a `grant` that was lost is not sent to the next one, because it may have been carried out.
        """
        self._transport.check_caller()
        attempt = Attempt(self._connections, timeout_s)
        while True:
            try:
                response: generation_pb2.ControlResponse = await self._transport.call(
                    attempt.stubs().generations.Control, request, attempt.remaining_s(), attempt.metadata()
                )
            except CallFailed as failure:
                kind = request.control.WhichOneof("message")
                if not attempt.try_elsewhere(failure, repeatable=kind not in ("insert_prompt", "grant")):
                    raise
            else:
                attempt.succeeded()
                return response

    async def call(
        self,
        rpc: Callable[[Stubs], Any],
        request: Any,
        timeout_s: float | None,
        done_before: str | None = None,
        *,
        once: bool = False,
    ) -> Any:
        """Calls an rpc with one response, again after a lost connection or if the server asks for it.

        `done_before` is the reason with which a repeated call fails if a lost one was carried out: then it returns
        None. `once` forbids to repeat a call that the server may have carried out.
        """
        self._transport.check_caller()
        attempt = Attempt(self._connections, timeout_s)
        while True:
            try:
                response = await self._transport.call(
                    rpc(attempt.stubs()), request, attempt.remaining_s(), attempt.metadata()
                )
            except CallFailed as failure:
                if attempt.lost and failure.reason == done_before:
                    return None
                if once and failure.connection_lost:
                    raise
                await self._transport.sleep(attempt.failed(failure))
            else:
                attempt.succeeded()
                return response
