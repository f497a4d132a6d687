"""Builds what the engine is to decode from a session's record: the transcript that its state lacks, then new tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS
from gruve.decode.stops import MATCHED, StopTable
from gruve.engine.sequence import Admission
from gruve.sessions.generation_request import GenerationRequest
from gruve.sessions.record import SNAPSHOT_TOKENS, Generation, Session


def build_admission(
    session: Session,
    generation: Generation,
    request: GenerationRequest,
    stops: StopTable | None,
    max_transcript: int,
    first_position: int,
) -> Admission:
    """Feeds the transcript from where the state stands, then generates what the generation has left to generate.

    If the client wants the log-probabilities of tokens from `first_position` on that the state has consumed,
    the transcript is fed from the nearest state before them.
    """
    state, consumed = session.state, session.consumed
    if request.logprobs is not None:
        state, consumed = session.state_before(first_position)
    end = generation.next_position if generation.finished else session.position
    max_generated = generation.generated + (0 if generation.finished else max_transcript - session.position)
    transcript: NDArray[np.int32] = np.array(
        session.transcript[max(0, consumed + 1 - HISTORY_TOKENS) : end], dtype=np.int32
    )
    split = min(consumed + 1, HISTORY_TOKENS)
    matching = session.transcript[generation.matching_position : generation.next_position]
    keep_state = bool(session.id) and not generation.finished
    return Admission(
        sampling=generation.sampling_at(end),
        history=transcript[:split],
        position=consumed,
        forced=transcript[split:],
        state=state,
        max_tokens=min(generation.max_tokens, max_generated),
        min_tokens=generation.min_tokens,
        ignore_eos=generation.ignore_eos,
        stops=stops,
        stop_state=0 if stops is None else stop_state(stops, matching),
        generated=generation.generated,
        logprobs=request.logprobs,
        deadline_s=request.deadline_s,
        max_tokens_per_second=request.max_tokens_per_second,
        keep_state=keep_state,
        snapshot_tokens=SNAPSHOT_TOKENS if keep_state else None,
        # Forced tokens are delivered only to a stream that sends prompts or has to skip inserted ones.
        deliver_forced=request.echo or request.logprobs is not None or bool(generation.changes),
    )


def stop_state(stops: StopTable, tokens: Iterable[int]) -> int:
    """The state of the stop automaton after these tokens."""
    state = 0
    for token in tokens:
        state = int(stops.table[state, token]) & (MATCHED - 1)
    return state
