"""The exceptions of the client, one tree, and the choice of a class from the status of a failed call.

Every exception that a call raises is a `CallFailed`. The names in brackets are the values of `gruve.v1.ErrorReason`
that a class stands for; a class without one is chosen from the gRPC status.

    CallFailed
    ├── InvalidRequest          [INVALID_FIELD, REQUEST_MALFORMED]  `violations` names each field and its bound
    │   ├── UnknownCharacter    [UNKNOWN_CHARACTER]                 the model's tokenizer has no token for it
    │   ├── BlobRefused         [BLOB_REFUSED]                      not a session that this server exported
    │   └── RequestTooLarge     RESOURCE_EXHAUSTED                  above the server's request limit
    ├── NotFound                NOT_FOUND
    │   ├── ModelNotFound       [MODEL_UNKNOWN]
    │   ├── GenerationUnknown   [GENERATION_UNKNOWN]                no conversation streams it there
    │   └── SessionNotFound
    │       ├── SessionUnknown  [SESSION_UNKNOWN]                   no id that this deployment has issued
    │       └── SessionExpired  [SESSION_EXPIRED]                   expired or deleted
    ├── PreconditionFailed      FAILED_PRECONDITION, ABORTED
    │   ├── ModelNotServing     [MODEL_NOT_SERVING]
    │   ├── ModelChanged        [MODEL_CHANGED]                     `rebase=True` continues with the new model
    │   ├── NumericsChanged     [NUMERICS_CHANGED]                  `allow_numerics_change=True` continues
    │   ├── ReloadRefused       [RELOAD_REFUSED]
    │   ├── GenerationMismatch  [GENERATION_MISMATCH]               the generation_id belongs to another request
    │   ├── PositionMismatch    [POSITION_MISMATCH]
    │   ├── TranscriptFull      [TRANSCRIPT_FULL]
    │   ├── ExportRefused       [EXPORT_KEY_MISSING, EXPORT_TOO_LARGE]
    │   └── TakenOver           [TAKEN_OVER]                        another call continues the generation
    ├── Unavailable             UNAVAILABLE                         raised after the retries; `retry_after_s`
    │   ├── Overloaded          [QUEUE_FULL, DEADLINE_TOO_SOON, LIMIT_EXCEEDED]
    │   ├── SessionBusy         [SESSION_BUSY]
    │   ├── SessionElsewhere    [SESSION_ELSEWHERE]
    │   ├── StoreUnavailable    [STORE_UNAVAILABLE]
    │   ├── ShuttingDown        [DRAINING, HANDED_OVER]
    │   └── ConnectionLost      no server answered, or the connection broke
    ├── DeadlineExceeded        DEADLINE_EXCEEDED                   `timeout_s` has passed
    ├── Cancelled               CANCELLED                           the client was closed
    ├── AccessDenied            [UNAUTHENTICATED, PERMISSION_DENIED]
    ├── Unimplemented           UNIMPLEMENTED
    └── ServerFault             [INTERNAL, ENGINE_FAILED]           `metadata["incident"]` finds it in the server's log
        └── StreamCorrupted     tokens were lost, repeated or altered between the server and the reader

A keyword argument that a method does not have is a `TypeError`, as everywhere in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "gruve"
CONNECTION_CODES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
)
"""The codes that gRPC or a proxy reports for a connection that was refused, reset or cut."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that was refused, and the reason."""

    field: str
    description: str


class CallFailed(Exception):
    """A call failed, and either a retry does not help or every retry failed too.

    `code` is the gRPC status. `reason` is the name of a `gruve.v1.ErrorReason` without its prefix; it is empty if gRPC
    itself ended the call. `metadata` and `violations` are the details that came with the reason. `retry_after_s` is the
    delay after which the server expects a retry to succeed, None if it did not name one.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message)  # as pickle and copy need them
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @property
    def connection_lost(self) -> bool:
        """Whether this is a `ConnectionLost`: no status came from a gruve server."""
        return isinstance(self, ConnectionLost)

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later or on another server."""
        return self.connection_lost or self.retry_after_s is not None


class InvalidRequest(CallFailed):
    """The request breaks a rule of the protocol; `violations` names the fields, the values and the bounds."""


class UnknownCharacter(InvalidRequest):
    """The model's tokenizer has no token for a part of the text; `metadata` has `found`, `offset`, `line`, `column`."""


class BlobRefused(InvalidRequest):
    """The exported session was altered, was signed with another key, or has a format that the server does not read."""


class RequestTooLarge(InvalidRequest):
    """The request is larger than the server accepts (1 MiB by default)."""


class NotFound(CallFailed):
    """The server does not have what the request names."""


class ModelNotFound(NotFound):
    """The server has no model of this name."""


class GenerationUnknown(NotFound):
    """No conversation streams this generation on the servers that were asked, or it ended before the control."""


class SessionNotFound(NotFound):
    """There is no such session."""


class SessionUnknown(SessionNotFound):
    """The session id was not issued by this deployment: it is mistyped, forged or from elsewhere."""


class SessionExpired(SessionNotFound):
    """The session id is authentic, but the session has expired or was deleted."""


class PreconditionFailed(CallFailed):
    """The request is valid, but the state of the server or the session does not allow it."""


class ModelNotServing(PreconditionFailed):
    """The model failed its checks when it was loaded; `metadata["state_reason"]` names the failed check."""


class ModelChanged(PreconditionFailed):
    """The model was replaced by one with another digest since the session, or the stream, began."""


class NumericsChanged(PreconditionFailed):
    """The server computes with another `numerics_id` than the session, or the stream, began with."""


class ReloadRefused(PreconditionFailed):
    """The files of the model to reload failed their checks; the model that served before still serves."""


class GenerationMismatch(PreconditionFailed):
    """The session has a generation with this `generation_id` from a different request."""


class PositionMismatch(PreconditionFailed):
    """A position of the request does not fit the session, whose position is `metadata["position"]`."""


class TranscriptFull(PreconditionFailed):
    """The session's transcript has no room for the prompt and one token; `rewind_session` makes room."""


class ExportRefused(PreconditionFailed):
    """The server has no key to sign exported sessions, or the session is too large to be imported again."""


class TakenOver(PreconditionFailed):
    """A later call with the same `generation_id` continues this generation."""


class Unavailable(CallFailed):
    """The call may succeed later or on another server, but the retries are used up."""


class Overloaded(Unavailable):
    """Every slot is taken and the queue is full, or a limit would be exceeded; nothing was started."""


class SessionBusy(Unavailable):
    """Another call is using the session."""


class SessionElsewhere(Unavailable):
    """Another replica holds the lease of the session."""


class StoreUnavailable(Unavailable):
    """The session store does not answer."""


class ShuttingDown(Unavailable):
    """The server is shutting down."""


class ConnectionLost(Unavailable):
    """No server answered, or the connection broke during the call."""


class DeadlineExceeded(CallFailed):
    """The call did not finish within `timeout_s`."""


class Cancelled(CallFailed):
    """The client was closed before the call finished."""


class AccessDenied(CallFailed):
    """The server, or a proxy before it, refused the caller: no credentials, wrong ones, or too small a role."""


class Unimplemented(CallFailed):
    """The server does not have this method: it is older than the client, or no gruve server."""


class ServerFault(CallFailed):
    """The server failed, or broke the protocol."""


class StreamCorrupted(ServerFault):
    """Tokens were lost, repeated or altered on the way: their positions, or their hash, are not the server's."""


CLASS_OF_REASON: dict[str, type[CallFailed]] = {
    "INVALID_FIELD": InvalidRequest,
    "REQUEST_MALFORMED": InvalidRequest,
    "UNKNOWN_CHARACTER": UnknownCharacter,
    "BLOB_REFUSED": BlobRefused,
    "MODEL_UNKNOWN": ModelNotFound,
    "MODEL_NOT_SERVING": ModelNotServing,
    "MODEL_CHANGED": ModelChanged,
    "NUMERICS_CHANGED": NumericsChanged,
    "RELOAD_REFUSED": ReloadRefused,
    "GENERATION_UNKNOWN": GenerationUnknown,
    "SESSION_UNKNOWN": SessionUnknown,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_BUSY": SessionBusy,
    "SESSION_ELSEWHERE": SessionElsewhere,
    "STORE_UNAVAILABLE": StoreUnavailable,
    "GENERATION_MISMATCH": GenerationMismatch,
    "POSITION_MISMATCH": PositionMismatch,
    "TRANSCRIPT_FULL": TranscriptFull,
    "TAKEN_OVER": TakenOver,
    "QUEUE_FULL": Overloaded,
    "DEADLINE_TOO_SOON": Overloaded,
    "LIMIT_EXCEEDED": Overloaded,
    "DRAINING": ShuttingDown,
    "HANDED_OVER": ShuttingDown,
    "ENGINE_FAILED": ServerFault,
    "EXPORT_KEY_MISSING": ExportRefused,
    "EXPORT_TOO_LARGE": ExportRefused,
    "INTERNAL": ServerFault,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
}
"""The class of every reason in proto/gruve/v1/error.proto."""
CLASS_OF_CODE: dict[grpc.StatusCode, type[CallFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RequestTooLarge,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ABORTED: PreconditionFailed,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNKNOWN: ServerFault,
}
"""The class of a status whose reason is absent, or is newer than this client."""


def class_of(code: grpc.StatusCode, reason: str, retry_after_s: float | None) -> type[CallFailed]:
    """The exception class for the status of a failed call."""
    if reason in CLASS_OF_REASON:
        return CLASS_OF_REASON[reason]
    if not reason and code in CONNECTION_CODES:  # a gruve server gives a reason with every status
        return ConnectionLost
    if retry_after_s is not None:
        return Unavailable
    return CLASS_OF_CODE.get(code, CallFailed)


def failure_of(error: grpc.RpcError) -> CallFailed:
    """Reads the status of a failed call, sync or async, with its `google.rpc` details."""
    call: Any = error  # a grpc.Call as well, or a grpc.aio.AioRpcError, which reads the same
    code, message = call.code() or grpc.StatusCode.UNKNOWN, call.details() or ""
    status = _rich_status(call)
    reason, metadata, retry_after_s = "", {}, None
    violations: list[FieldViolation] = []
    for packed in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            violations.extend(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return class_of(code, reason, retry_after_s)(
        code,
        message,
        reason=reason,
        metadata=metadata,
        violations=tuple(violations),
        retry_after_s=retry_after_s,
    )


def _rich_status(call: Any) -> Any:
    """The `google.rpc.Status` of a call; None if there is none, or if it contradicts the call's own status."""
    try:
        return rpc_status.from_call(call)
    except ValueError:
        return None
