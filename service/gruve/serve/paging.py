"""Pages of a list: their size, and the token that asks for the next one."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from gruve.errors import InvalidField

MAX_PAGE_BYTES = 1 << 20
"""The size of the entries on a page. By default gRPC clients accept messages of 4 MiB."""


def page_size(request: Any, default: int, maximum: int, *, minimum: int) -> int:
    """The `page_size` of a request, cut to `maximum`. Raises `InvalidField` if it is below `minimum`."""
    if not request.HasField("page_size"):
        return default
    size: int = request.page_size
    if size < minimum:
        raise InvalidField("page_size", f"{size} is below {minimum}")
    return min(size, maximum)


def page_token(*parts: str) -> str:
    """The token that `page_start` reads. No part has a slash."""
    return base64.urlsafe_b64encode("/".join(parts).encode()).decode()


def page_start(token: str, kind: re.Pattern[str]) -> tuple[str, ...]:
    """The parts of a page token, () for the first page. Raises `InvalidField` for a text that is not of this kind."""
    if not token:
        return ()
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode()
    except (binascii.Error, UnicodeError):
        text = ""
    if not kind.fullmatch(text):
        raise InvalidField("page_token", f"{token[:64]!r} is not a token that this rpc has given")
    return tuple(text.split("/"))
