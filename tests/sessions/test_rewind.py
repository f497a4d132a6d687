"""Rewinds restore the transcript, record and parameters of a position, with a state that is not far before it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import (
    MAX_SNAPSHOTS,
    NEAR_TOKENS,
    SNAPSHOT_TOKENS,
    Change,
    Generation,
    Session,
    thin_snapshots,
)
from gruve.sessions.rewind import rewind

STATE = np.zeros((1, 1, 2), np.float32)


def seeded(seed):
    return SamplingParameters(seed=seed)


def session_of(*generations):
    """A session of generations, each (length of prompt, tokens, changes as (offset from start, seed, inserted))."""
    session = Session("id", "m", "d", "n", 9.0, 0.0, 0.0)
    for i, (prompt, tokens, changes) in enumerate(generations):
        at = session.position
        start = at + prompt
        session.transcript.extend(range(at, start + tokens))
        session.generations.append(
            Generation(
                f"g{i}",
                at,
                start,
                seeded(i),
                99,
                0,
                False,
                (),
                (),
                0.0,
                session.position,
                FinishReason.LENGTH,
                True,
                [Change(start + offset, seeded(seed), inserted) for offset, seed, inserted in changes],
            )
        )
        session.advance(STATE, session.position - 1)
    return session


def test_a_generation_taken_back_as_a_whole_is_forgotten_and_one_in_part_is_cancelled():
    session = session_of((2, 5, ()), (1, 5, ()), (0, 5, ()))
    rewind(session, 11)
    assert session.transcript.tolist() == list(range(11))
    assert [(g.id, g.next_position, g.finish_reason) for g in session.generations] == [
        ("g0", 8, FinishReason.LENGTH),
        ("g1", 11, FinishReason.CANCELLED),
    ]
    rewind(session, 8)
    assert [(g.id, g.finish_reason) for g in session.generations] == [("g0", FinishReason.LENGTH)]
    rewind(session, 1)
    assert session.generations == []


def test_a_prompt_cut_in_the_middle_leaves_its_beginning():
    session = session_of((5, 5, ()))
    rewind(session, 3)
    (generation,) = session.generations
    assert (generation.prompt_position, generation.start_position, generation.next_position) == (1, 3, 3)
    assert (generation.generated, generation.finished) == (0, True)


@pytest.mark.parametrize(("to", "seed"), [(1, 0), (4, 0), (6, 0), (7, 50), (8, 50), (9, 60), (12, 1), (13, 1), (17, 1)])
def test_the_parameters_of_that_position_are_in_force_again(to, seed):
    session = session_of((2, 8, ((4, 50, 0), (6, 60, 2))), (1, 5, ()))
    rewind(session, to)
    assert session.sampling == seeded(seed)
    rewind(session, to, seed=7)
    assert session.sampling == seeded(7)


def test_an_inserted_prompt_is_cut_where_it_stands():
    session = session_of((2, 8, ((4, 50, 3),)))
    assert session.generations[0].generated == 5
    rewind(session, 9)
    assert session.generations[0].changes == [Change(7, seeded(50), 2)]
    assert session.generations[0].generated == 4
    rewind(session, 6)
    assert session.generations[0].changes == []


def test_within_its_generation_a_rewind_lets_it_go_on_under_another_seed():
    session = session_of((2, 8, ((4, 50, 0),)))
    generation = session.generations[0]
    rewind(session, 9, seed=70, within=generation)
    assert (generation.next_position, generation.finished, generation.finish_reason) == (9, False, None)
    assert (generation.sampling_at(8), generation.sampling_at(9)) == (seeded(50), seeded(70))
    assert session.sampling == seeded(70)
    assert session.next_sampling is None


def test_rewinds_to_one_position_leave_one_change_of_the_seed():
    session = session_of((2, 5, ()))
    (generation,) = session.generations
    for seed in (7, 8, 9):
        rewind(session, 5, seed, within=generation)
    assert generation.changes == [Change(5, seeded(9))]


def test_a_session_without_generations_takes_a_seed():
    session = session_of()
    rewind(session, 1)
    assert session.sampling is None
    rewind(session, 1, seed=9)
    assert session.sampling == seeded(9)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=4),
    st.integers(1, 60),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_repeating_a_rewind_changes_nothing_more(generations, to, seed):
    session = session_of(*((prompt, tokens, ((0, 30, 0),)) for prompt, tokens in generations))
    to = min(to, session.position)
    rewind(session, to, seed)
    before = copy.deepcopy((session.transcript, session.generations, session.sampling, session.consumed))
    rewind(session, to, seed)
    assert (session.transcript, session.generations, session.sampling, session.consumed) == before
    assert session.consumed < session.position == to


@given(st.lists(st.integers(1, SNAPSHOT_TOKENS), min_size=1, max_size=400), st.integers(0, NEAR_TOKENS))
def test_a_state_near_the_end_is_never_far(steps, back):
    session = session_of()
    for step in steps:
        session.transcript.extend([1] * step)
        session.advance(STATE, session.position - 1)
    assert len(session.snapshots) <= MAX_SNAPSHOTS
    to = max(1, session.position - back)
    rewind(session, to)
    assert 0 <= to - 1 - session.consumed <= SNAPSHOT_TOKENS


def test_further_back_states_are_further_apart():
    kept: set[int] = set()
    for at in range(255, 1 << 20, 256):
        kept = thin_snapshots(kept | {at}, at + 1)
    end = (1 << 20) - 1
    assert len(kept) == MAX_SNAPSHOTS
    for back in (5_000, 20_000, 100_000, 500_000):
        nearest = max((at for at in kept if at <= end - back), default=0)
        assert end - back - nearest <= 2 * back, back
