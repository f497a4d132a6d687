"""What the controls of a steered generation do to its record. Positions lie within the session's last generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gruve.engine.sequence import FinishReason
from gruve.errors import LimitExceeded
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Change, Generation, Session
from gruve.sessions.rewind import rewind

MAX_CHANGES = 1_024
"""The changes that the record of one generation may hold. Each write, each message and the receipt go through all."""
MAX_BIASES = 65_536
"""The entries that the logit biases of these changes may have, all together. The receipt has them all."""


def check_room(generation: Generation, position: int, sampling: Mapping[str, Any]) -> None:
    """Raises `LimitExceeded` if the generation's record has no room for a change of `sampling` at `position`."""
    kept = [change.sampling for change in generation.changes if change.position < position]
    if len(kept) >= MAX_CHANGES:
        why = f"the generation has {MAX_CHANGES} changes, which is the most that one may have"
        raise LimitExceeded(why, "changes", MAX_CHANGES, None)
    biases = sum(len(s.logit_bias) for s in (*kept, _sampling_at(generation, position, sampling)))
    if biases > MAX_BIASES:
        why = f"the changes of the generation would have {biases} entries of logit biases; at most {MAX_BIASES}"
        raise LimitExceeded(why, "change_biases", MAX_BIASES, None)


def rewind_generation(session: Session, generation: Generation, position: int, seed: int | None) -> None:
    """Removes the tokens from `position` on, and continues the generation there, with `seed` if one is given."""
    if generation.next_position > position or generation.finished or seed is not None:
        rewind(session, position, seed, within=generation)


def change_parameters(session: Session, generation: Generation, position: int, sampling: Mapping[str, Any]) -> None:
    """Changes the sampling parameters from `position` on, which is the generation's end."""
    _record(session, generation, Change(position, _sampling_at(generation, position, sampling)))


def insert_prompt(
    session: Session, generation: Generation, position: int, prompt: tuple[int, ...], sampling: Mapping[str, Any]
) -> None:
    """Inserts prompt tokens at `position`, which is the generation's end."""
    session.transcript.extend(prompt)
    generation.next_position += len(prompt)
    _record(session, generation, Change(position, _sampling_at(generation, position, sampling), len(prompt)))


def stop(session: Session, generation: Generation) -> None:
    """Finishes the generation at its end."""
    generation.finish(FinishReason.CANCELLED)
    session.store_progress.events += 1


def _sampling_at(generation: Generation, position: int, sampling: Mapping[str, Any]) -> SamplingParameters:
    return dataclasses.replace(generation.sampling_at(position), **sampling)


def _record(session: Session, generation: Generation, change: Change) -> None:
    generation.add(change)
    session.store_progress.events += 1
