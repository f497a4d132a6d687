"""Bounds the calls that need no credentials, so that a stranger who keeps them open does not fill the memory.

Each open call takes some kilobytes, and gRPC keeps the request of a call until it ends, several times over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from gruve.serve.callers.access import OPEN, ROLES
from gruve.serve.calls.accept_loop import EndStatus

METHODS = frozenset(method for method, role in ROLES.items() if role is OPEN)
MAX_CALLS = 512
"""The calls of each of these methods that may be open at once, whoever makes them."""
MAX_REQUEST_BYTES = 1_024
"""A request holds the name of a service or of a model, which has 255 bytes at most."""
TOO_MANY = EndStatus(
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], f"{MAX_CALLS} calls of this method are open, which is the most", ()
)


def refuse_beyond(method: str, open_calls: int) -> EndStatus | None:
    """The status of a call beyond the bound, when `open_calls` of its method are open; None leaves it to its method."""
    return TOO_MANY if method in METHODS and open_calls >= MAX_CALLS else None


def bounded(handler: Any) -> Any:
    """Wraps the handler of one of these methods: a request that is too large or malformed is refused."""
    deserialize: Callable[[bytes], Any] = handler.request_deserializer
    behavior = handler.unary_stream or handler.unary_unary

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data) if len(data) <= MAX_REQUEST_BYTES else None
        except Exception:  # noqa: BLE001 - gRPC would log a stranger's fault with its trace
            return None

    async def call(request: Any, context: Any) -> Any:
        if request is None:
            why = f"the request is malformed, or has more than {MAX_REQUEST_BYTES} bytes"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        answer: Awaitable[Any] = behavior(request, context)
        return await answer

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(call, parse, handler.response_serializer)
