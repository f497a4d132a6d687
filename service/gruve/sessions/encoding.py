"""From sessions to what a store holds, and back. Nothing here is ever executed: JSON, integers and floats alone."""

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
from gruve.sessions.record import Change, Generation, Kept, Session
from gruve.sessions.store import CHUNK_TOKENS, Listed, Stored, Write

PLAIN_GENERATION = tuple(
    field.name
    for field in dataclasses.fields(Generation)
    if field.name not in ("sampling", "changes", "finish_reason", "stop", "stop_token_ids")
)
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclasses.dataclass(frozen=True, slots=True)
class Handed:
    """A write on its way, and what it was made from."""

    session: Session
    write: Write
    events: int
    cuts: int

    def arrived(self) -> None:
        """The store has it."""
        kept = self.session.kept
        kept.stored = True
        kept.durable_events = self.events
        kept.stored_snapshots -= set(self.write.dropped_states)
        if kept.cuts == self.cuts:
            kept.durable_position = self.write.position

    def failed(self) -> None:
        """Whether the store has it is not known: it will be handed over once more."""
        kept, write = self.session.kept, self.write
        kept.position = min(kept.position, write.first_chunk * CHUNK_TOKENS)
        kept.generations = min(kept.generations, write.first_generation)
        kept.snapshots -= {at for at, _ in write.states}
        kept.handed_events, kept.changed = kept.durable_events, True


def hand_over(session: Session, *, release: bool = False) -> Handed:
    """What the store does not have yet of a session, to be written; takes note that it was handed over."""
    kept = session.kept
    first_chunk = kept.position // CHUNK_TOKENS
    eventful = kept.handed_events < kept.events or kept.changed
    # The last generation that was handed over may have gone on since, or have been finished by the next one. While it
    # only goes on, its record follows from the tokens.
    first_generation = max(0, kept.generations - 1) if eventful else len(session.generations)
    write = Write(
        id=session.id,
        version=kept.version,
        model=session.model,
        created_s=session.created_s,
        used_s=session.used_s,
        ttl_s=session.idle_ttl_s,
        position=session.position,
        head=pack_head(session) if eventful else "",
        first_chunk=first_chunk,
        chunks=pack_chunks(session.transcript, first_chunk),
        first_generation=first_generation,
        generations=tuple(map(pack_generation, session.generations[first_generation:])),
        states=tuple((at, pack_state(state)) for at, state in session.snapshots.items() if at not in kept.snapshots),
        dropped_states=tuple(kept.stored_snapshots - session.snapshots.keys()),
        create=not kept.stored,
        release=release,
    )
    kept.position, kept.generations, kept.handed_events = session.position, len(session.generations), kept.events
    kept.changed = False
    kept.snapshots = frozenset(session.snapshots)
    kept.stored_snapshots |= kept.snapshots
    return Handed(session, write, kept.events, kept.cuts)


def pack_head(session: Session) -> str:
    """What is said of a session beside its contents."""
    return _encode(
        {
            "model": session.model,
            "digest": session.digest,
            "numerics_id": session.numerics_id,
            "tokenizer_digest": session.tokenizer_digest,
            "idle_ttl_s": session.idle_ttl_s,
            "created_s": session.created_s,
            "given": session.given is not None,
            "sampling": None if session.sampling is None else _plain(session.sampling),
        }
    )


def unpack_head(listed: Listed) -> Session:
    """A session without its contents: its transcript is not to be read, and `Listed.position` says how long it is."""
    head = json.loads(listed.head)
    sampling = None if head["sampling"] is None else _sampling(head["sampling"])
    return Session(
        id=listed.id,
        model=head["model"],
        digest=head["digest"],
        numerics_id=head["numerics_id"],
        idle_ttl_s=head["idle_ttl_s"],
        created_s=head["created_s"],
        used_s=listed.used_s,
        tokenizer_digest=head["tokenizer_digest"],
        given=sampling,
    )


def unpack_session(stored: Stored, version: int) -> Session:
    """The session as it was when it was last written."""
    session = unpack_head(stored.listed)
    if not json.loads(stored.listed.head)["given"]:
        session.given = None
    session.transcript = unpack_tokens(stored.transcript)
    session.generations = [unpack_generation(record) for record in stored.generations]
    if session.generations and not session.generations[-1].finished:  # written before its latest tokens were
        session.generations[-1].next_position = session.position
    session.snapshots = {at: unpack_state(state) for at, state in sorted(stored.states) if at < session.position}
    session.consumed = max(session.snapshots, default=0)
    session.state = session.snapshots.get(session.consumed)
    session.kept = Kept(
        stored=True,
        version=version,
        position=session.position,
        generations=len(session.generations),
        snapshots=frozenset(session.snapshots),
        stored_snapshots=frozenset(at for at, _ in stored.states),
        durable_position=session.position,
        events=0,
    )
    return session


def pack_generation(generation: Generation) -> str:
    """A generation's record."""
    samplings = list(dict.fromkeys([generation.sampling, *(change.sampling for change in generation.changes)]))
    plain: dict[str, Any] = {name: getattr(generation, name) for name in PLAIN_GENERATION}
    return _encode(
        plain
        | {
            "stop": generation.stop,
            "stop_token_ids": generation.stop_token_ids,
            "finish_reason": generation.finish_reason.value if generation.finish_reason else None,
            "samplings": [_plain(sampling) for sampling in samplings],
            "changes": [[c.position, samplings.index(c.sampling), c.inserted] for c in generation.changes],
        }
    )


def unpack_generation(record: str) -> Generation:
    """The generation of a record."""
    told = json.loads(record)
    samplings = [_sampling(fields) for fields in told.pop("samplings")]
    changes = [Change(position, samplings[i], inserted) for position, i, inserted in told.pop("changes")]
    reason = told.pop("finish_reason")
    stop, stop_token_ids = tuple(told.pop("stop")), tuple(told.pop("stop_token_ids"))
    return Generation(
        **told,
        sampling=samplings[0],
        stop=stop,
        stop_token_ids=stop_token_ids,
        changes=changes,
        finish_reason=None if reason is None else FinishReason(reason),
    )


def pack_tokens(tokens: array.array[int]) -> bytes:
    """Two bytes a token, little-endian."""
    if sys.byteorder == "big":
        tokens = array.array("H", tokens)
        tokens.byteswap()
    return tokens.tobytes()


def pack_chunks(tokens: array.array[int], first: int) -> tuple[bytes, ...]:
    """The chunks of a transcript from the `first` on."""
    return tuple(
        pack_tokens(tokens[at : at + CHUNK_TOKENS]) for at in range(first * CHUNK_TOKENS, len(tokens), CHUNK_TOKENS)
    )


def unpack_tokens(packed: bytes) -> array.array[int]:
    """The tokens again."""
    tokens = array.array("H")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


def pack_state(state: NDArray[np.float32]) -> bytes:
    """A state with its shape."""
    return struct.pack(f"<B{state.ndim}I", state.ndim, *state.shape) + state.astype("<f4").tobytes()


def unpack_state(packed: bytes) -> NDArray[np.float32]:
    """The state again; raises ValueError where the bytes are none."""
    if not packed or len(packed) < 1 + 4 * packed[0]:
        raise ValueError(f"a state of {len(packed)} bytes")
    shape = struct.unpack_from(f"<{packed[0]}I", packed, 1)
    return np.frombuffer(packed, dtype="<f4", offset=1 + 4 * packed[0]).astype(np.float32).reshape(shape)


def _sampling(fields: dict[str, Any]) -> SamplingParameters:
    return SamplingParameters(**fields | {"logit_bias": tuple((token, bias) for token, bias in fields["logit_bias"])})


@functools.lru_cache(1_024)
def _plain(sampling: SamplingParameters) -> Mapping[str, Any]:
    return dataclasses.asdict(sampling)
