"""Everything that can go wrong, drawn as one tree. Knows nothing of gRPC: `serve/status.py` maps each to a status.

GruveError
├── InvalidRequest              the caller's fault, whatever the state of the server
│   ├── InvalidField            a value out of its range; names the field
│   ├── BlobRefused             an exported session that was altered or comes from elsewhere
│   └── UnknownCharacter        text the tokenizer has no token for; says where
├── TuneError                   ABC that cannot be read; says line and column
├── ModelError
│   ├── ModelUnknown            no such entry in the repository
│   ├── ModelBroken             the entry is there and cannot be served
│   └── CorpusError             a training corpus that cannot be used
├── SessionError
│   ├── SessionUnknown          an id this server never minted, or of another key
│   ├── SessionExpired          an authentic id whose session has expired or was deleted
│   ├── SessionBusy             another sequence is using it; come back
│   ├── SessionElsewhere        another replica holds its lease
│   ├── ModelChanged            made with other weights or another tokenizer
│   ├── NumericsChanged         made with other arithmetic; exactness could not be kept
│   ├── PositionMismatch        `expected_position` or `from_position` is not what the session holds
│   ├── GenerationMismatch      a generation id used before for another request
│   ├── TakenOver               the same generation was resumed on another stream
│   ├── TranscriptFull          the session has reached its longest transcript
│   ├── ExportKeyMissing        there is no key to sign or verify an exported session with
│   └── ExportTooLarge          nobody could import it
├── NotYet                      the contract has it, this version does not
└── Unavailable
    ├── QueueFull               every slot and every waiting place is taken; come back
    ├── Draining                the server is shutting down; another may serve
    ├── HandedOver              the server shut down under a running stream; resume elsewhere
    ├── StoreUnavailable        the store that has the session does not answer
    ├── StoreBroken             the store cannot be used at all; only when a server starts
    └── EngineFailed            the decode loop failed; the log has the trace under this id
"""

from __future__ import annotations

from typing import ClassVar


class GruveError(Exception):
    """The root. `reason` is the stable name that clients may compare; `metadata` what they may read with it."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidRequest(GruveError):
    """A request that no server in any state would accept."""

    reason = "REQUEST_MALFORMED"


class InvalidField(InvalidRequest):
    """A value out of its range. `field` is the path in the request, `why` quotes the value and the bound."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class UnknownCharacter(InvalidRequest):
    """Text for which the tokenizer has no token. `offset` counts characters from 0."""

    reason = "UNKNOWN_CHARACTER"

    def __init__(self, found: str, text: str, offset: int, tokenizer: str) -> None:
        line = text.count("\n", 0, offset) + 1
        column = offset - (text.rfind("\n", 0, offset) + 1) + 1
        names = " ".join(f"U+{ord(c):04X}" for c in found[:4])
        super().__init__(
            f"{found[:16]!r} ({names}) at line {line}, column {column} (offset {offset}) "
            f"is not in the vocabulary of this {tokenizer} tokenizer",
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
    """The bytes of an exported session are not what a server with this key has signed."""

    reason = "BLOB_REFUSED"


class TuneError(GruveError):
    """ABC notation that cannot be read. `line` and `column` count from 1; 0 means the tune as a whole."""

    reason = "INVALID_TUNE"

    def __init__(self, why: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"line {line}, column {column}: {why}" if line else why)
        self.why = why
        self.line = line
        self.column = column


class ModelError(GruveError):
    """A model that cannot be found, loaded or made."""

    reason = "MODEL_ERROR"


class ModelUnknown(ModelError):
    """No entry of that name stands in the model repository."""

    reason = "MODEL_UNKNOWN"


class ModelBroken(ModelError):
    """The entry exists and is refused: a missing or truncated file, another hash, an unknown key, a wrong shape."""

    reason = "MODEL_NOT_SERVING"


class CorpusError(ModelError):
    """A corpus that cannot be trained on: empty, binary, of another encoding, of another hash than the card's."""

    reason = "INVALID_CORPUS"


class SessionError(GruveError):
    """A session that cannot be used in the way the request asks."""

    reason = "SESSION_ERROR"


class SessionUnknown(SessionError):
    """The id was not minted by this server or by one that shares its key."""

    reason = "SESSION_UNKNOWN"


class SessionExpired(SessionError):
    """The id is authentic and nothing is kept under it: it has expired, was evicted, or was deleted."""

    reason = "SESSION_EXPIRED"


class SessionBusy(SessionError):
    """Another sequence is using the session; one at a time may. `retry_after_s` is when it pays to come back."""

    reason = "SESSION_BUSY"

    def __init__(self, message: str, retry_after_s: float = 0.5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SessionElsewhere(SessionError):
    """Another replica holds the session's lease."""

    reason = "SESSION_ELSEWHERE"
    retry_after_s = 1.0


class ModelChanged(SessionError):
    """The session was made with a model of another digest; `rebase` may rebuild it."""

    reason = "MODEL_CHANGED"


class NumericsChanged(SessionError):
    """The session was made under another `numerics_id`; going on would not be exact."""

    reason = "NUMERICS_CHANGED"


class PositionMismatch(SessionError):
    """The session does not stand where the request expects it to."""

    reason = "POSITION_MISMATCH"


class GenerationMismatch(SessionError):
    """The generation id names an earlier generation with another prompt or other parameters."""

    reason = "GENERATION_MISMATCH"


class TranscriptFull(SessionError):
    """The transcript would outgrow its limit."""

    reason = "TRANSCRIPT_FULL"


class ExportKeyMissing(SessionError):
    """The server has no key that outlives it, so what it signed nobody could verify."""

    reason = "EXPORT_KEY_MISSING"


class ExportTooLarge(SessionError):
    """The exported session would not fit into a request."""

    reason = "EXPORT_TOO_LARGE"


class TakenOver(SessionError):
    """The same generation was resumed on another stream, which goes on where this one ends."""

    reason = "TAKEN_OVER"


class NotYet(GruveError):
    """The contract names the call and this version does not answer it."""

    reason = "NOT_YET"


class Unavailable(GruveError):
    """The server cannot take the request now, and another moment or another server may."""

    reason = "UNAVAILABLE"
    retry_after_s: float = 1.0


class QueueFull(Unavailable):
    """Slots and waiting places are all taken. `retry_after_s` is when it pays to come back."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(Unavailable):
    """The server has begun to shut down and takes no new work."""

    reason = "DRAINING"


class AddressInUse(Unavailable):
    """The server cannot listen where it was told to."""

    reason = "ADDRESS_IN_USE"


class HandedOver(Unavailable):
    """The server shut down under a running stream; `next_position` is where another one goes on."""

    reason = "HANDED_OVER"

    def __init__(self, next_position: int) -> None:
        super().__init__(
            f"the server is shutting down; resume with from_position {next_position} on another",
            next_position=next_position,
        )
        self.next_position = next_position


class StoreUnavailable(Unavailable):
    """The session store cannot be reached, read or written now. `__cause__` says why, for the log."""

    reason = "STORE_UNAVAILABLE"


class StoreBroken(Unavailable):
    """A session store that a server cannot start with: not a store, of a later version, in use, or not to be opened."""

    reason = "STORE_BROKEN"


class EngineFailed(Unavailable):
    """The decode loop raised. What it raised stands in the log under `incident`, never in the message."""

    reason = "ENGINE_FAILED"

    def __init__(self, incident: str) -> None:
        super().__init__(
            f"the decode engine failed; the server's log has the cause under incident {incident}", incident=incident
        )
        self.incident = incident
