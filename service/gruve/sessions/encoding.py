"""Encodes sessions for a store and decodes them: JSON, integers and floats. No stored byte is ever executed."""

from __future__ import annotations

import array
import dataclasses
import functools
import json
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Change, Generation, Session, StoreProgress
from gruve.sessions.store import CHUNK_TOKENS, SessionSummary, StoredSession, Write

PLAIN_GENERATION = tuple(
    field.name
    for field in dataclasses.fields(Generation)
    if field.name
    not in ("sampling", "changes", "finish_reason", "stop", "stop_token_ids", "computed_from", "record_bytes")
)
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclasses.dataclass(frozen=True, slots=True)
class PendingWrite:
    """A write that was submitted to the store, with the session and the progress it was made from."""

    session: Session
    write: Write
    events: int
    cuts: int

    def succeed(self) -> None:
        """Records that the store has the write."""
        progress = self.session.store_progress
        progress.stored = True
        progress.durable_events = self.events
        progress.stored_snapshots -= set(self.write.dropped_states)
        if progress.cuts == self.cuts:
            progress.durable_position = self.write.position

    def fail(self) -> None:
        """Records that the write may or may not have reached the store; everything in it is submitted again."""
        progress, write = self.session.store_progress, self.write
        progress.position = min(progress.position, write.first_chunk * CHUNK_TOKENS)
        progress.generations = min(progress.generations, write.first_generation)
        progress.snapshots -= {at for at, _ in write.states}
        progress.submitted_events, progress.changed = progress.durable_events, True


def prepare_write(session: Session, *, release: bool = False) -> PendingWrite:
    """Builds the write of everything that the store lacks, and marks it as submitted in `session.store_progress`.

    With `release` the write also ends the lease.
    """
    progress = session.store_progress
    first_chunk = progress.position // CHUNK_TOKENS
    eventful = progress.submitted_events < progress.events or progress.changed
    # The last submitted generation may have grown, or the next one may have finished it. While it only grows, its
    # record follows from the tokens.
    first_generation = max(0, progress.generations - 1) if eventful else len(session.generations)
    head, generations = pack_head(session) if eventful else "", session.generations[first_generation:]
    records = tuple(map(pack_generation, generations))
    new_states = ((at, state) for at, state in session.snapshots.items() if at not in progress.snapshots)
    write = Write(
        id=session.id,
        version=progress.version,
        model=session.model,
        tenant=session.tenant,
        created_s=session.created_s,
        used_s=session.used_s,
        ttl_s=session.idle_ttl_s,
        position=session.position,
        content_bytes=content_bytes(session),
        head=head,
        first_chunk=first_chunk,
        chunks=pack_chunks(session.transcript, first_chunk),
        first_generation=first_generation,
        generations=records,
        states=tuple((at, pack_state(state)) for at, state in new_states),
        dropped_states=tuple(progress.stored_snapshots - session.snapshots.keys()),
        create=not progress.stored,
        release=release,
    )
    progress.position, progress.generations = session.position, len(session.generations)
    progress.submitted_events, progress.changed = progress.events, False
    progress.snapshots = frozenset(session.snapshots)
    progress.stored_snapshots |= progress.snapshots
    return PendingWrite(session, write, progress.events, progress.cuts)


def content_bytes(session: Session) -> int:
    """The size of a session in the store, if it were written now: head, transcript, generations and states."""
    if not session.store_progress.head_bytes:
        pack_head(session)
    for generation in session.generations:
        if not generation.record_bytes:
            pack_generation(generation)
    records = sum([generation.record_bytes for generation in session.generations])
    states = sum([len(_state_shape(state)) + state.nbytes for state in session.snapshots.values()])
    return session.store_progress.head_bytes + 2 * len(session.transcript) + records + states


def pack_head(session: Session) -> str:
    """Encodes the session's metadata, without transcript, generations and states. Notes the size."""
    head = _encode(
        {
            "model": session.model,
            "digest": session.digest,
            "numerics_id": session.numerics_id,
            "tokenizer_digest": session.tokenizer_digest,
            "idle_ttl_s": session.idle_ttl_s,
            "created_s": session.created_s,
            "given": session.next_sampling is not None,
            "sampling": None if session.sampling is None else _plain(session.sampling),
        }
    )
    session.store_progress.head_bytes = len(head)
    return head


def unpack_head(summary: SessionSummary) -> Session:
    """Decodes a session without its contents. Its transcript is empty; `SessionSummary.position` has the length."""
    head = json.loads(summary.head)
    sampling = None if head["sampling"] is None else _sampling(head["sampling"])
    return Session(
        id=summary.id,
        model=head["model"],
        digest=head["digest"],
        numerics_id=head["numerics_id"],
        idle_ttl_s=head["idle_ttl_s"],
        created_s=head["created_s"],
        used_s=summary.used_s,
        tenant=summary.tenant,
        tokenizer_digest=head["tokenizer_digest"],
        next_sampling=sampling,
    )


def unpack_session(stored: StoredSession, version: int) -> Session:
    """Decodes a session as it was last written, held under the lease `version`."""
    session = unpack_head(stored.summary)
    if not json.loads(stored.summary.head)["given"]:
        session.next_sampling = None
    session.transcript = unpack_tokens(stored.transcript)
    session.generations = [unpack_generation(record) for record in stored.generations]
    if session.generations and not session.generations[-1].finished:  # its record is older than its tokens
        session.generations[-1].next_position = session.position
    session.snapshots = {at: unpack_state(state) for at, state in sorted(stored.states) if at < session.position}
    session.consumed = max(session.snapshots, default=0)
    session.state = session.snapshots.get(session.consumed)
    session.store_progress = StoreProgress(
        stored=True,
        version=version,
        position=session.position,
        generations=len(session.generations),
        snapshots=frozenset(session.snapshots),
        stored_snapshots=frozenset(at for at, _ in stored.states),
        durable_position=session.position,
        events=0,
        head_bytes=len(stored.summary.head),
    )
    return session


def pack_generation(generation: Generation) -> str:
    """Encodes a generation. Notes the size."""
    samplings = list(dict.fromkeys([generation.sampling, *(change.sampling for change in generation.changes)]))
    plain: dict[str, Any] = {name: getattr(generation, name) for name in PLAIN_GENERATION}
    if generation.computed_from:  # a server of the last version reads all others
        plain["computed_from"] = generation.computed_from
    record = _encode(
        plain
        | {
            "stop": generation.stop,
            "stop_token_ids": generation.stop_token_ids,
            "finish_reason": generation.finish_reason.value if generation.finish_reason else None,
            "samplings": [_plain(sampling) for sampling in samplings],
            "changes": [[c.position, samplings.index(c.sampling), c.inserted] for c in generation.changes],
        }
    )
    generation.record_bytes = len(record)
    return record


def unpack_generation(record: str) -> Generation:
    """Decodes a generation."""
    plain = json.loads(record)
    samplings = [_sampling(values) for values in plain.pop("samplings")]
    changes = [Change(position, samplings[i], inserted) for position, i, inserted in plain.pop("changes")]
    reason = plain.pop("finish_reason")
    stop, stop_token_ids = tuple(plain.pop("stop")), tuple(plain.pop("stop_token_ids"))
    return Generation(
        **plain,
        sampling=samplings[0],
        stop=stop,
        stop_token_ids=stop_token_ids,
        changes=changes,
        finish_reason=None if reason is None else FinishReason(reason),
        record_bytes=len(record),
    )


def pack_tokens(tokens: array.array[int]) -> bytes:
    """Encodes tokens as two bytes each, little-endian."""
    if sys.byteorder == "big":
        tokens = array.array("H", tokens)
        tokens.byteswap()
    return tokens.tobytes()


def pack_chunks(tokens: array.array[int], first: int) -> tuple[bytes, ...]:
    """Encodes the chunks of a transcript from chunk number `first` on."""
    return tuple(
        pack_tokens(tokens[at : at + CHUNK_TOKENS]) for at in range(first * CHUNK_TOKENS, len(tokens), CHUNK_TOKENS)
    )


def unpack_tokens(packed: bytes) -> array.array[int]:
    """Decodes tokens."""
    tokens = array.array("H")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


def pack_state(state: NDArray[np.float32]) -> bytes:
    """Encodes a state, its shape first."""
    return _state_shape(state) + state.astype("<f4").tobytes()


def _state_shape(state: NDArray[np.float32]) -> bytes:
    return struct.pack(f"<B{state.ndim}I", state.ndim, *state.shape)


def unpack_state(packed: bytes) -> NDArray[np.float32]:
    """Decodes a state; raises ValueError if the bytes are not one."""
    if not packed or len(packed) < 1 + 4 * packed[0]:
        raise ValueError(f"a stored state has {len(packed)} bytes; its shape alone takes {1 + 4 * sum(packed[:1])}")
    shape = struct.unpack_from(f"<{packed[0]}I", packed, 1)
    return np.frombuffer(packed, dtype="<f4", offset=1 + 4 * packed[0]).astype(np.float32).reshape(shape)


def _sampling(fields: dict[str, Any]) -> SamplingParameters:
    return SamplingParameters(**fields | {"logit_bias": tuple((token, bias) for token, bias in fields["logit_bias"])})


@functools.lru_cache(1_024)
def _plain(sampling: SamplingParameters) -> Mapping[str, Any]:
    return dataclasses.asdict(sampling)
