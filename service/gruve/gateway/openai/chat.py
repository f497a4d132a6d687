"""`/v1/chat/completions`, which is refused with the reason."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gruve.gateway.errors import Refused

NO_CHAT = (
    "chat completions are not offered: these models continue a text or a tune token by token and know no roles or "
    "instructions; POST /v1/completions continues a prompt"
)


async def chat_completions(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
    """Refuses the request."""
    raise Refused(404, "NO_CHAT", NO_CHAT)
