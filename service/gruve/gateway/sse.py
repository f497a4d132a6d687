"""Server-sent events: their form, and a response that ends what it reads from when the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gruve.client import CallFailed
from gruve.gateway.errors import Refused
from gruve.gateway.forms import as_refused, error_body, to_json

log = logging.getLogger(__name__)
Events = AsyncGenerator[str, None]
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Nothing on the way may keep events back."""


def event(value: Any, *, name: str = "", event_id: str = "") -> str:
    """One event, whose data is a value as JSON on one line."""
    head = (f"event: {name}\n" if name else "") + (f"id: {event_id}\n" if event_id else "")
    return f"{head}data: {to_json(value)}\n\n"


class EventResponse(StreamingResponse):
    """Sends events as they come. It does not read ahead of a client that reads slowly."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Sends all events until the client goes away, in the task of the request: another one would be a detour."""
        with contextlib.suppress(ClientDisconnect):
            async with while_connected(receive):
                await self.stream_response(send)

    async def stream_response(self, send: Send) -> None:
        """Sends all events, and closes their source whatever happens."""
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var] # an async generator
            await super().stream_response(send)


async def event_response(request: Request, events: Events, error_name: str = "") -> EventResponse:
    """The response with these events. An error before the first one is raised, a later one is sent as an event."""
    try:
        async with while_connected(request.receive):
            first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return EventResponse(_guarded(first, events, error_name), headers=HEADERS)


async def _guarded(first: str, rest: Events, error_name: str) -> Events:
    async with contextlib.aclosing(rest):
        yield first
        try:
            async for one in rest:
                yield one
        except Exception as error:
            if not isinstance(error, CallFailed | Refused):
                log.exception("a stream failed")
            yield event(error_body(as_refused(error)), name=error_name)


@contextlib.asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block if the client goes away: then `ClientDisconnect` is raised.

    The request's body must have been read. The block stays in its task, because each change of tasks waits behind all
    messages that have arrived for other streams.
    """
    try:
        async with asyncio.timeout(None) as limit:
            gone = asyncio.ensure_future(_expire_when_gone(receive, limit))
            try:
                yield
            finally:
                gone.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        raise ClientDisconnect from None


async def _expire_when_gone(receive: Receive, limit: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    limit.reschedule(asyncio.get_running_loop().time())
