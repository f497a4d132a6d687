"""The page at `/`, for people: four files of the package, which load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

STATIC = Path(__file__).parent / "static"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""The page runs no script but its own, and sends nothing anywhere but to the gateway."""


async def _file(request: Request) -> Response:
    return FileResponse(STATIC / FILES[request.url.path], headers=HEADERS)


ROUTES: list[BaseRoute] = [Route(path, _file) for path in FILES]
