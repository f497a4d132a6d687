"""The page at `/`, for people: files of the package, which load nothing from elsewhere.

`abcjs-basic-min.js` is abcjs 6.7.2 (MIT, https://abcjs.net) as its npm package has it; its licence stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": "index.html",
    **{
        f"/{name}": name
        for name in (
            "page.css",
            "page.js",
            "beginning.js",
            "kept.js",
            "links.js",
            "notation.js",
            "player.js",
            "abcjs-basic-min.js",
            "icon.svg",
        )
    },
}
ABCJS_STYLE = "'sha256-BCpnf71gZdCsSCHDzyB1RsBbZ0qQdqseK6v+yJsgg30='"
"""The one style that abcjs puts into each drawing; any other is refused."""
HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src 'self'; style-src 'self' {ABCJS_STYLE}; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""The page runs no script but its own, and sends nothing anywhere but to the gateway."""


async def _file(request: Request) -> Response:
    return FileResponse(STATIC / FILES[request.url.path], headers=HEADERS)


ROUTES: list[BaseRoute] = [Route(path, _file) for path in FILES]
