"""`/health`: whether a server answers."""

from __future__ import annotations

import contextlib

from starlette.requests import Request
from starlette.responses import Response

from gruve.client import AccessDenied, AsyncClient
from gruve.gateway.forms import json_response

TIMEOUT_S = 2.0


async def health(request: Request) -> Response:
    """200 if a server takes requests, otherwise the error that a request would get. Needs no key."""
    client: AsyncClient = request.app.state.client
    with contextlib.suppress(AccessDenied):  # the server answers, and wants a key that a probe does not have
        await client.models(timeout_s=TIMEOUT_S)
    return json_response({"status": "ok"})
