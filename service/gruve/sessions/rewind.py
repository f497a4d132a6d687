"""Rewind: cuts a session's record back to an earlier position."""

from __future__ import annotations

import dataclasses

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Change, Generation, Session


def rewind(session: Session, to_position: int, seed: int | None = None, *, within: Generation | None = None) -> None:
    """Removes the tokens from `to_position` on, which is 1 to the session's position.

    The session's parameters become those at that position, with `seed` if it is given. A generation that is cut, or
    was unfinished, is finished with CANCELLED; one that is removed as a whole leaves the record. If `within` is given,
    it is the last generation and continues instead: `to_position` is then at least its start, and `seed` becomes a
    change of it. The state becomes the nearest snapshot before, so `consumed` may lie before the pending token.
    """
    sampling = session.sampling_at(to_position)
    if seed is not None:
        sampling = SamplingParameters(seed=seed) if sampling is None else dataclasses.replace(sampling, seed=seed)
    cut = [i for i, g in enumerate(session.generations) if g.next_position > to_position]
    unchanged = min([*cut, len(session.generations) - 1]) if session.generations else 0
    session.store_progress.cut(to_position, unchanged)
    session.generations = [
        g
        for g in session.generations
        if g is within or g.next_position <= to_position or g.prompt_position < to_position
    ]
    session.cut_transcript(to_position)
    for generation in session.generations[unchanged:]:
        was_cut = generation.next_position > to_position
        if was_cut:
            generation.cut(to_position)
        if generation is within:
            generation.finish_reason, generation.finished = None, False
            if seed is not None and sampling is not None:
                generation.add(Change(to_position, sampling))
        elif was_cut or not generation.finished:
            generation.finish(FinishReason.CANCELLED)
    session.next_sampling = None if within is not None else sampling
    session.snapshots = {at: state for at, state in session.snapshots.items() if at < to_position}
    session.state, session.consumed = session.state_before(to_position)
