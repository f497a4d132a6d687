"""The table from errors to gRPC status codes, and their `google.rpc` details.

Stack traces go to the log under an incident id, never to a client.
"""

from __future__ import annotations

import logging
import uuid

import grpc
from google.rpc import error_details_pb2, status_pb2

from gruve import errors
from gruve.serve.messages import duration

log = logging.getLogger(__name__)
DOMAIN = "gruve"
DETAILS_KEY = "grpc-status-details-bin"
MAX_TEXT_BYTES = 600
"""The maximum size of a message or a metadata value, which may quote a client or a file. A client refuses trailers
above 8 KiB; a message is in them three times, once with up to three bytes for each of its own."""

STATUS: dict[type, grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ModelUnknown: grpc.StatusCode.NOT_FOUND,
    errors.ModelBroken: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReloadRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionUnknown: grpc.StatusCode.NOT_FOUND,
    errors.SessionExpired: grpc.StatusCode.NOT_FOUND,
    errors.GenerationUnknown: grpc.StatusCode.NOT_FOUND,
    errors.SessionBusy: grpc.StatusCode.ABORTED,
    errors.TakenOver: grpc.StatusCode.ABORTED,
    errors.SessionElsewhere: grpc.StatusCode.UNAVAILABLE,
    errors.SessionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineTooSoon: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.GruveError: grpc.StatusCode.INTERNAL,
}
"""By class. The nearest base class that has an entry decides."""
RETRIES: tuple[type[errors.GruveError], ...] = (
    errors.SessionBusy,
    errors.SessionElsewhere,
    errors.QueueFull,
    errors.DeadlineTooSoon,
    errors.LimitExceeded,
    errors.Draining,
    errors.HandedOver,
    errors.StoreUnavailable,
)
"""The errors after which a retry may succeed."""


class InternalError(errors.GruveError):
    """The server is at fault; the log has the cause."""

    reason = "INTERNAL"


def internal_error(error: BaseException, **where: str) -> InternalError:
    """Logs an unexpected error under an incident id, and returns the error that the client gets."""
    incident = uuid.uuid4().hex[:12]
    log.error("failed inside: incident %s", incident, exc_info=error, extra={"incident": incident, **where})
    return InternalError(f"the server failed; its log has the cause under incident {incident}", incident=incident)


def status_code(error: errors.GruveError) -> grpc.StatusCode:
    """The canonical code of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def trailer(error: errors.GruveError) -> tuple[str, bytes]:
    """The trailing metadata that carries ErrorInfo and, where they apply, BadRequest and RetryInfo."""
    metadata = {key: shorten(value) for key, value in error.metadata.items()}
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=shorten(error.why))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_after_s = getattr(error, "retry_after_s", 1.0)
    if isinstance(error, RETRIES) and retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(retry_after_s)))
    status = status_pb2.Status(code=status_code(error).value[0], message=shorten(str(error)))
    for detail in details:
        status.details.add().Pack(detail)
    return DETAILS_KEY, status.SerializeToString()


def shorten(text: str) -> str:
    """The text, cut to `MAX_TEXT_BYTES`."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= MAX_TEXT_BYTES else encoded[:MAX_TEXT_BYTES].decode(errors="ignore") + "…"
