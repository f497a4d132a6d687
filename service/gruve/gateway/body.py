"""The bounds of a request's body, for every route: its size and the time that it takes."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gruve.gateway.errors import ConnectionClosing


class BodyBounds:
    """Refuses a body that is larger than `max_bytes` or takes longer than `max_s`, when the application reads it.

    What is announced as too large is refused before any of it is read. The refusal ends the connection, because the
    rest of the body is not read.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        left, deadline_s, complete = self._max_bytes, asyncio.get_running_loop().time() + self._max_s, False

        async def receive_bounded() -> Message:
            nonlocal left, complete
            if complete:
                return await receive()
            if int(announced) > self._max_bytes:
                raise self._too_large(f"has {int(announced)} bytes")
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                why = f"the body did not arrive within {self._max_s:g} s"
                raise ConnectionClosing(408, "BODY_TOO_SLOW", why) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large("is larger")
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_bounded, send)

    def _too_large(self, found: str) -> ConnectionClosing:
        return ConnectionClosing(
            413, "BODY_TOO_LARGE", f"the body {found}; the gateway takes {self._max_bytes} bytes at most"
        )
