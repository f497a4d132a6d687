"""What the controls of a steered generation do to its record. Positions lie within the session's last generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Change, Generation, Session
from gruve.sessions.rewind import rewind


def rewind_generation(session: Session, generation: Generation, position: int, seed: int | None = None) -> None:
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
    """Records a change. It replaces an earlier one at its position that inserted nothing."""
    changes = generation.changes
    if changes and changes[-1].position == change.position and not changes[-1].inserted:
        changes.pop()
    changes.append(change)
    session.store_progress.events += 1
