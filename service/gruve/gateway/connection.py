"""The bounds of connections: how many there are, and how long each may take to send the head of a request.

uvicorn bounds neither. A client that opens connections and sends nothing, or a byte now and then, would hold them for
ever. Bodies have their own bounds in `body`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from gruve.gateway.errors import Refused
from gruve.gateway.forms import error_body, error_response, to_json


class BoundedConnection(H11Protocol):
    """A connection. It is closed when no request is being answered on it for `head_s`.

    A client that has sent a part of a head by then is answered with 408. What it sends after an answer, such as the
    rest of a body that nobody reads, does not count. uvicorn closes a connection earlier if nothing comes after an
    answer. With more than `max_connections`, the later ones get 503 for their first request.
    """

    def __init__(self, *args: Any, head_s: float, max_connections: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_s = head_s
        self._max_connections = max_connections
        self._too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begins to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self.app = _too_many(self._max_connections)
        self._bound()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no longer."""
        if self._too_slow is not None:
            self._too_slow.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handles what has arrived, which may be the head of a request."""
        super().handle_events()
        self._bound()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        super().on_response_complete()
        self._bound()

    def _bound(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self._too_slow is None:
            self._too_slow = self.loop.call_later(self._head_s, self._close)
        elif answering and self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _close(self) -> None:
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            why = f"the head of the request did not arrive within {self._head_s:g} s"
            body = to_json(error_body(Refused(408, "HEAD_TOO_SLOW", why))).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            head = h11.Response(status_code=408, headers=list(headers.items()), reason=b"Request Timeout")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _too_many(max_connections: int) -> Response:
    """The application of a connection beyond the bound: an answer that refuses its request."""
    why = f"the gateway has {max_connections} connections, which is the most it takes; try again"
    headers = {"retry-after": "1", "connection": "close"}
    return error_response(Refused(503, "TOO_MANY_CONNECTIONS", why, headers=headers))
