"""The headers of a caller that are passed on as the metadata of its gRPC calls.

The gateway has one client for all callers and no key of its own. The middleware sets the metadata of a request, and the
client asks for it at each call that the request's task, or a task started by it, makes.
"""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from gruve.client.credentials import Metadata

PASSED_ON = frozenset({"authorization", "gruve-tenant", "traceparent", "tracestate"})
"""The names of headers that gRPC calls carry as metadata."""
_caller: ContextVar[Metadata] = ContextVar("caller", default=())


def caller_metadata() -> Metadata:
    """The metadata of the request that this task serves; empty outside of one."""
    return _caller.get()


class CallerMiddleware:
    """Sets the metadata of each request.

    A value that gRPC cannot carry, because it is not printable ASCII, is left out: it cannot be a valid key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http":
            headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
            _caller.set(tuple(h for h in headers if h[0] in PASSED_ON and h[1].isascii() and h[1].isprintable()))
        await self._app(scope, receive, send)
