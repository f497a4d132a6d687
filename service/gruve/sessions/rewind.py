"""Rewind: cuts a session's record back to an earlier position."""

from __future__ import annotations

import dataclasses

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Change, Generation, Session


def rewind(session: Session, to_position: int, seed: int | None = None, *, within: Generation | None = None) -> None:
    """Takes back the tokens from `to_position` on, 1 to the session's position.

    Parameters are then those that were in force there, with `seed` where it is given. A generation that is taken back
    in part is finished with CANCELLED, as is one that was unfinished; one taken back as a whole is forgotten. `within`
    names the last generation where it is to go on instead; then `to_position` is at least its start, and `seed` becomes
    a change of it. The state is the nearest that was kept, so `consumed` may lie before the pending token.
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
    del session.transcript[to_position:]
    for generation in session.generations[unchanged:]:
        was_cut = generation.next_position > to_position
        if was_cut:
            generation.cut(to_position)
        if generation is within:
            generation.finish_reason, generation.finished = None, False
            if seed is not None and sampling is not None:
                generation.changes.append(Change(to_position, sampling))
        elif was_cut or not generation.finished:
            generation.finish(FinishReason.CANCELLED)
    session.next_sampling = None if within is not None else sampling
    session.snapshots = {at: state for at, state in session.snapshots.items() if at < to_position}
    if session.consumed >= to_position:
        session.consumed = max(session.snapshots, default=0)
        session.state = session.snapshots.get(session.consumed)
