"""Which pages of browsers may call: none but those of this machine, unless their origins are listed.

A browser sends `Origin` with a page's call; other programs send none. A call with an unknown one is refused. It is not
enough to hide the answer from the page, because the call itself would use a gateway that only the page's visitor can
reach.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gruve.gateway.errors import Refused
from gruve.gateway.forms import error_response
from gruve.ports import is_loopback


class OriginCheck:
    """Refuses calls of pages whose origin is not `allowed`. The gateway's own pages on this machine are allowed.

    A page that was loaded by any other name is not trusted for having the gateway's own name: a name can be made to
    resolve to this machine after its page was loaded (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin", "")
            if origin and origin not in self._allowed and not _is_own(origin, headers.get("host", "")):
                why = f"pages of {origin[:200]!r} may not call this gateway; --allow-origin lists those that may"
                await error_response(Refused(403, "ORIGIN_REFUSED", why))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is the gateway itself, as this machine reaches it."""
    try:
        parts = urlsplit(origin)
        return parts.netloc == host and is_loopback(parts.hostname or "")
    except ValueError:
        return False
