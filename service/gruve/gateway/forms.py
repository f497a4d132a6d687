"""The form of answers: JSON, and errors as OpenAI's API has them. The routes of Connect have a form of their own."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gruve.client.errors import CallFailed
from gruve.gateway.errors import Refused, refusal_of

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's `type` of an error by its status; any other is `invalid_request_error` below 500, else `server_error`."""


def to_json(value: Any) -> str:
    """A value as JSON in ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with a value."""
    return Response(to_json(value), status, headers, media_type="application/json")


def error_body(refused: Refused) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    error = {"message": refused.message, "type": kind, "param": refused.field or None, "code": refused.code}
    return {"error": error}


def error_response(refused: Refused) -> Response:
    """The answer to a refused request."""
    return json_response(error_body(refused), refused.status, refused.headers)


def as_refused(error: Exception) -> Refused:
    """The refusal for an exception of a route. An unexpected exception is the gateway's fault."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, CallFailed):
        return refusal_of(error)
    if isinstance(error, HTTPException):  # the router's, for a path or a method that it does not have
        return Refused(error.status_code, "NO_ROUTE", error.detail, headers=dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):  # nobody reads this
        return Refused(499, "CANCELLED", "the client has gone")
    return Refused(500, "INTERNAL", "the gateway failed; its log has the cause")


async def on_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    """Answers a request that raised."""
    return error_response(as_refused(error))
