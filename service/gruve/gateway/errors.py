"""Refusals: one table from gRPC statuses to HTTP statuses, for the routes of every form."""

from __future__ import annotations

import logging
import math
import time

import grpc

from gruve.client.errors import CallFailed, Cancelled, RequestTooLarge
from gruve.errors import about_field

log = logging.getLogger(__name__)
LOG_S = 10.0
"""The log says at most this often why no server answers."""
HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""Any other status is a 500."""
FIELDS = {
    "name": "model",
    "text": "prompt",
    "ids": "prompt",
    "token_ids": "tokens",
}
"""The HTTP names of the protocol's fields, where they are not the same."""
FIELD_OF_REASON = {
    "UNKNOWN_CHARACTER": "prompt",
    "MODEL_UNKNOWN": "model",
    "MODEL_NOT_SERVING": "model",
    "SESSION_UNKNOWN": "session_id",
    "SESSION_EXPIRED": "session_id",
}
"""The field that is wrong, for reasons with which a server names none."""
SHUTTING_DOWN = "the gateway is shutting down; try again"
NO_SERVER = "no server answers the gateway; try again"
"""gRPC's own message lists addresses that a caller need not know."""


class Refused(Exception):
    """A request that is answered with an error. `field` names what is wrong with the request, if that is one field.

    `code` is the name of a `gruve.v1.ErrorReason`, or another word that programs may compare.
    """

    def __init__(
        self, status: int, code: str, message: str, *, field: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.headers = headers or {}


class InvalidField(Refused):
    """A field of the request has a value that is not allowed. `why` quotes the value and the bound."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(400, "INVALID_FIELD", about_field(field, why), field=field)


class ConnectionClosing(Refused):
    """A request whose body is not read, so the connection cannot be used again."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message, headers={"connection": "close"})


def refusal_of(failure: CallFailed) -> Refused:
    """The HTTP refusal for a failed call to a server.

    It has `Retry-After` if the server asked for a retry. If a retry cannot help, `x-should-retry: false` tells clients
    of OpenAI's API not to try.
    """
    if isinstance(failure, RequestTooLarge):
        return Refused(413, "REQUEST_TOO_LARGE", failure.message)
    if isinstance(failure, Cancelled):  # the gateway has closed its client
        return Refused(503, "UNAVAILABLE", SHUTTING_DOWN)
    status = HTTP_STATUS.get(failure.code, 500)
    headers = retry_after(failure)
    if not headers and not failure.connection_lost:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if failure.connection_lost:
        log_lost(failure)
        return Refused(503, "UNAVAILABLE", NO_SERVER, headers=headers)
    field = _field_of(failure)
    return Refused(status, failure.reason or failure.code.name, failure.message, field=field, headers=headers)


class _Lost:
    """When the log last said why no server answers."""

    logged_s = -math.inf


def log_lost(failure: CallFailed) -> None:
    """Logs why no server answers a call, which its caller does not learn, unless it did so a moment ago."""
    now_s = time.monotonic()
    if now_s >= _Lost.logged_s + LOG_S:
        _Lost.logged_s = now_s
        log.error("no server answers", extra={"why": failure.message})


def retry_after(failure: CallFailed) -> dict[str, str]:
    """The header `Retry-After`, in whole seconds, if the server asked for a retry; otherwise none."""
    return {} if failure.retry_after_s is None else {"retry-after": str(math.ceil(failure.retry_after_s))}


def _field_of(failure: CallFailed) -> str:
    """The field of the HTTP request that a server has refused; empty if it is none."""
    if not failure.violations:
        return FIELD_OF_REASON.get(failure.reason, "")
    name = failure.violations[0].field.rpartition(".")[2].partition("[")[0]
    return FIELDS.get(name, name)
