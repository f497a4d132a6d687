"""The exceptions of the library and the server, as a tree. Knows no gRPC; `serve/calls/status.py` has their statuses.

GruveError
├── InvalidRequest              no server accepts the request, whatever its state
│   ├── InvalidField            a value is out of range; names the field
│   ├── BlobRefused             an exported session was altered, or signed with another key
│   ├── ReceiptInvalid          a file is no receipt, or one of another version
│   ├── KeyFileRefused          a key file is readable for others, or has another kind of key
│   └── UnknownCharacter        the tokenizer has no token for a character; says where
├── Unauthenticated             the call has no valid credentials
├── PermissionDenied            the caller's role does not allow the call
├── TuneError                   ABC notation cannot be read; says line and column
├── ModelError
│   ├── ModelUnknown            the repository has no entry of that name
│   ├── ModelBroken             the entry exists and cannot be served
│   ├── ModelExists             a model is to be added under a name that is taken
│   ├── ReloadRefused           the files cannot be loaded; what was serving continues
│   └── CorpusError             a training corpus cannot be used
├── SessionError
│   ├── SessionUnknown          the id was not issued with this server's key
│   ├── SessionExpired          the id is authentic; its session has expired or was deleted
│   ├── GenerationUnknown       no stream of the generation is running here that could be steered
│   ├── SessionBusy             another sequence is using the session; retry
│   ├── SessionElsewhere        another replica holds its lease
│   ├── ModelChanged            the session was made with other weights or another tokenizer
│   ├── NumericsChanged         the session was made with other arithmetic
│   ├── PositionMismatch        the session is not at `expected_position`, or lacks `from_position`
│   ├── GenerationMismatch      the generation id was used for another request
│   ├── TakenOver               the generation was resumed on another stream
│   ├── TranscriptFull          the transcript has reached its maximum length
│   ├── ExportKeyMissing        the server has no key to sign or verify exported sessions with
│   └── ExportTooLarge          the exported session would not fit into a request
└── Unavailable
    ├── QueueFull               all slots and all places of the waiting queue are taken; retry
    ├── DeadlineTooSoon         the request would still wait or decode when its deadline comes; retry later
    ├── LimitExceeded           the tenant, or all tenants together, would exceed a limit; retry, if that can help
    ├── Draining                the server is shutting down; try another
    ├── CannotListen            a port is in use, a host is bad or a permission is missing; only at start
    ├── CredentialsBroken       a certificate or a file of keys cannot be used; only at start
    ├── HandedOver              the server shut down during the stream; resume on another
    ├── StoreUnavailable        the session store does not answer
    ├── StoreBroken             the session store cannot be used; only at start
    └── EngineFailed            decoding failed; the log has the trace under the incident id
"""

from __future__ import annotations

from typing import ClassVar


class GruveError(Exception):
    """The root. `reason` is a stable name that clients may compare; `metadata` has values that belong to it."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidRequest(GruveError):
    """A request that no server accepts, whatever its state."""

    reason = "REQUEST_MALFORMED"


def about_field(field: str, why: str) -> str:
    """A sentence about a field: `why` as its predicate ("n is 2; must be 1"), or after a colon."""
    return f"{field} {why}" if why.startswith(("is ", "has ", "must ")) else f"{field}: {why}"


class InvalidField(InvalidRequest):
    """A value is out of range. `field` is its path in the request; `why` quotes the value and the bound."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(about_field(field, why))
        self.field = field
        self.why = why


class UnknownCharacter(InvalidRequest):
    """The tokenizer has no token for a character. `offset` counts characters from 0."""

    reason = "UNKNOWN_CHARACTER"

    def __init__(self, found: str, text: str, offset: int) -> None:
        line = text.count("\n", 0, offset) + 1
        column = offset - (text.rfind("\n", 0, offset) + 1) + 1
        code_point = f" (U+{ord(found):04X})" if len(found) == 1 else ""
        super().__init__(
            f"the model has no token for {found[:16]!r}{code_point}, at line {line}, column {column}",
            found=found[:16],
            offset=offset,
            line=line,
            column=column,
        )
        self.found = found
        self.offset = offset
        self.line = line
        self.column = column


class BlobRefused(InvalidRequest):
    """The bytes of an exported session were not signed with this server's key, or were altered since."""

    reason = "BLOB_REFUSED"


class ReceiptInvalid(InvalidRequest):
    """A file is no receipt, or one of a version that this gruve does not read. No request has one."""


class KeyFileRefused(InvalidRequest):
    """A key file is readable for others, or has another kind of key. No request has one."""


class Unauthenticated(GruveError):
    """The call has no API key or token, or one that is wrong, expired or revoked. The message never says which."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(GruveError):
    """The caller is known, and its role does not allow the call."""

    reason = "PERMISSION_DENIED"


class TuneError(GruveError):
    """ABC notation cannot be read. `line` and `column` count from 1; 0 means the tune as a whole."""

    reason = "INVALID_TUNE"

    def __init__(self, why: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"line {line}, column {column}: {why}" if line else why)
        self.why = why
        self.line = line
        self.column = column


class ModelError(GruveError):
    """A model cannot be found, loaded or trained."""

    reason = "MODEL_ERROR"


class ModelUnknown(ModelError):
    """The model repository has no entry of that name."""

    reason = "MODEL_UNKNOWN"


class ModelExists(ModelError):
    """A model is to be added to a repository that has something of that name."""


class ModelBroken(ModelError):
    """The entry cannot be served: a missing or truncated file, another hash, an unknown key, a wrong shape."""

    reason = "MODEL_NOT_SERVING"


class ReloadRefused(ModelError):
    """A model's files cannot be loaded in place of what serves. Everything stays as it was."""

    reason = "RELOAD_REFUSED"


class CorpusError(ModelError):
    """A corpus cannot be trained on: empty, binary, of another encoding, of another hash than the card's."""

    reason = "INVALID_CORPUS"


class SessionError(GruveError):
    """A session cannot be used as requested."""

    reason = "SESSION_ERROR"


class SessionUnknown(SessionError):
    """The id was not issued by this server nor by one with the same key."""

    reason = "SESSION_UNKNOWN"


class SessionExpired(SessionError):
    """The id is authentic, but its session has expired, was evicted or was deleted."""

    reason = "SESSION_EXPIRED"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} has expired or was deleted")


class GenerationUnknown(SessionError):
    """No stream that could be steered has this generation, or it ended before the control took effect."""

    reason = "GENERATION_UNKNOWN"


class SessionBusy(SessionError):
    """Another sequence is using the session; only one may at a time. `retry_after_s` says when to retry."""

    reason = "SESSION_BUSY"

    def __init__(self, message: str, retry_after_s: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SessionElsewhere(SessionError):
    """Another replica holds the session's lease."""

    reason = "SESSION_ELSEWHERE"
    retry_after_s = 1.0


class ModelChanged(SessionError):
    """The session was made with a model of another digest. `rebase` rebuilds it if the tokenizer is the same."""

    reason = "MODEL_CHANGED"


class NumericsChanged(SessionError):
    """The session was made under another `numerics_id`; a continuation would not be exact."""

    reason = "NUMERICS_CHANGED"


class PositionMismatch(SessionError):
    """The session is not at the position that the request expects."""

    reason = "POSITION_MISMATCH"


class GenerationMismatch(SessionError):
    """The generation id names an earlier generation with another prompt or other parameters."""

    reason = "GENERATION_MISMATCH"


class TranscriptFull(SessionError):
    """The transcript would exceed its maximum length."""

    reason = "TRANSCRIPT_FULL"


class ExportKeyMissing(SessionError):
    """The server has no lasting key, so no server could verify what it signs."""

    reason = "EXPORT_KEY_MISSING"


class ExportTooLarge(SessionError):
    """The exported session would not fit into a request."""

    reason = "EXPORT_TOO_LARGE"


class TakenOver(SessionError):
    """The generation was resumed on another stream, which continues where this one ends."""

    reason = "TAKEN_OVER"


class Unavailable(GruveError):
    """The server cannot take the request now; it may later, or another server may."""

    reason = "UNAVAILABLE"
    retry_after_s: float | None = 1.0


class QueueFull(Unavailable):
    """All slots and all places of the waiting queue are taken. `retry_after_s` says when to retry."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineTooSoon(Unavailable):
    """The request could not be finished from its place in the queue before its deadline.

    `estimate_s` is when it would be, `left_s` the time until the deadline, and `retry_after_s` when the queue may be
    short enough.
    """

    reason = "DEADLINE_TOO_SOON"

    def __init__(self, message: str, estimate_s: float, left_s: float) -> None:
        super().__init__(message, estimate_s=f"{estimate_s:.3f}", left_s=f"{left_s:.3f}")
        self.estimate_s = estimate_s
        self.left_s = left_s
        self.retry_after_s = max(0.1, estimate_s - left_s)


class LimitExceeded(Unavailable):
    """The request would exceed a limit of the tenant or of the server; `limit` names it.

    `retry_after_s` says when the request may succeed; it is None if it is larger than the limit itself, and for the
    limits of sessions and of their bytes, which waiting does not help. `model_memory` is the server's limit on the
    memory of loaded models, and `stops` that on the memory of different stops.
    """

    reason = "LIMIT_EXCEEDED"

    def __init__(self, message: str, limit: str, bound: int, retry_after_s: float | None) -> None:
        super().__init__(message, limit=limit, bound=bound)
        self.limit = limit
        self.retry_after_s = retry_after_s


class Draining(Unavailable):
    """The server is shutting down and takes no new work."""

    reason = "DRAINING"


class CannotListen(Unavailable):
    """The server cannot listen on its configured address."""

    reason = "CANNOT_LISTEN"


class CredentialsBroken(Unavailable):
    """A certificate, its key or a file of keys is missing, not readable or not what it should be."""

    reason = "CREDENTIALS_BROKEN"


class HandedOver(Unavailable):
    """The server shut down during the stream, which another server can continue from `next_position`."""

    reason = "HANDED_OVER"

    def __init__(self, next_position: int) -> None:
        super().__init__(
            f"the server is shutting down; resume with from_position {next_position} on another",
            next_position=next_position,
        )
        self.next_position = next_position


class StoreUnavailable(Unavailable):
    """The session store cannot be reached, read or written now. `__cause__` has the reason, for the log."""

    reason = "STORE_UNAVAILABLE"


class StoreBroken(Unavailable):
    """The server cannot start with its session store: not a store, of a later version, in use, or not readable."""

    reason = "STORE_BROKEN"


class EngineFailed(Unavailable):
    """Decoding failed. The log has the exception under `incident`; the message never quotes it."""

    reason = "ENGINE_FAILED"

    def __init__(self, incident: str) -> None:
        super().__init__(
            f"the decode engine failed; the server's log has the cause under incident {incident}", incident=incident
        )
        self.incident = incident
