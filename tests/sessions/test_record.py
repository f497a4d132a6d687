"""What a session's record says of positions, parameters and changes, on one generation with all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters
from gruve.receipt.token_hash import TokenHash
from gruve.sessions.record import BIAS_BYTES, CHANGE_BYTES, Change, Generation, Session, StoreProgress

LENGTH, DEADLINE = FinishReason.LENGTH, FinishReason.DEADLINE
FIRST, SECOND, THIRD, FOURTH = (SamplingParameters(seed=seed) for seed in range(4))


def generation_of(next_position=20):
    """Its prompt is at 1 to 4. Of its tokens from 5 on, those at 8, 9, 12, 13 and 14 were inserted."""
    changes = [Change(7, SECOND), Change(8, THIRD, 2), Change(12, FOURTH, 3)]
    return Generation("g", 1, 5, FIRST, 99, 0, False, (), (), 0.0, next_position, changes=changes)


def session_of(*generations):
    session = Session("s", "m", "d", "n", 60.0, 0.0, 0.0)
    session.generations.extend(generations)
    session.transcript.extend(range(1, 20))
    return session


def test_inserted_tokens_are_not_generated_ones():
    assert generation_of().inserted == [(8, 10), (12, 15)]
    assert [generation_of(end).generated for end in (5, 8, 9, 10, 12, 13, 15, 20)] == [0, 3, 3, 3, 5, 5, 5, 10]


def test_a_stop_is_completed_after_the_last_prompt():
    assert generation_of().matching_position == 15
    assert dataclasses.replace(generation_of(), changes=[]).matching_position == 5


def test_a_change_applies_from_its_position_on():
    sampling = [generation_of().sampling_at(position) for position in (5, 6, 7, 8, 11, 12, 19)]
    assert sampling == [FIRST, FIRST, SECOND, THIRD, THIRD, FOURTH, FOURTH]
    assert generation_of().last_sampling == FOURTH


@pytest.mark.parametrize(
    ("position", "inserted"), [(16, [(8, 10), (12, 15)]), (13, [(8, 10), (12, 13)]), (12, [(8, 10)]), (8, [])]
)
def test_a_cut_keeps_what_comes_before_it(position, inserted):
    generation = generation_of()
    generation.cut(position)
    assert (generation.next_position, generation.inserted) == (position, inserted)


def test_a_change_at_the_place_of_a_cut_still_applies():
    generation = generation_of()
    generation.cut(12)
    assert generation.last_sampling == FOURTH
    generation.cut(11)
    assert generation.last_sampling == THIRD


def test_a_change_replaces_an_earlier_one_at_its_position_unless_that_inserted_tokens():
    generation = generation_of()
    for change in (Change(15, FIRST), Change(15, SECOND, 1), Change(15, THIRD)):
        generation.add(change)
    assert generation.changes[3:] == [Change(15, SECOND, 1), Change(15, THIRD)]


def test_the_parameters_of_a_session_are_those_of_the_generation_at_the_position():
    later = Generation("h", 20, 22, SECOND, 99, 0, False, (), (), 0.0, 25)
    session = session_of(generation_of(), later)
    assert [session.sampling_at(position) for position in (19, 20, 24, 25)] == [FOURTH, SECOND, SECOND, SECOND]
    session.next_sampling = THIRD
    assert [session.sampling_at(position) for position in (24, 25)] == [SECOND, THIRD]


def test_the_memory_of_a_session_counts_texts_changes_and_each_bias_once():
    biased = SamplingParameters(logit_bias=((1, 1.0), (2, 2.0)))
    plain, marked = (dataclasses.replace(generation_of(), id="", stop=(), changes=[]) for _ in range(2))
    without = session_of(plain, plain).memory_bytes()
    marked.id, marked.stop, marked.sampling = "abc", ("de", "f"), biased
    marked.changes = [Change(7, biased), Change(8, biased)]
    assert session_of(plain, marked).memory_bytes() - without == 4 * 6 + 2 * CHANGE_BYTES + 2 * BIAS_BYTES


def test_a_session_that_is_used_or_about_to_be_is_not_idle():
    session = session_of()
    assert session.is_idle
    session.pins = 1
    assert not session.is_idle
    session.pins, session.in_use = 0, True
    assert not session.is_idle


@pytest.mark.parametrize("lacks", [{}, {"durable_position": 19}, {"durable_events": 2}, {"changed": True}])
def test_a_session_is_dirty_while_the_store_lacks_any_of_it(lacks):
    session = session_of()
    whole = {"durable_position": 20, "events": 3, "durable_events": 3, "changed": False}
    session.store_progress = StoreProgress(**whole | lacks)
    assert session.dirty == bool(lacks)


def test_a_rewind_leaves_in_the_store_what_comes_before_it():
    progress = StoreProgress(
        position=20, durable_position=15, generations=3, snapshots=frozenset({5, 10, 12}), events=4, cuts=1
    )
    progress.cut(12, generations=2)
    assert (progress.position, progress.durable_position, progress.generations) == (12, 12, 2)
    assert (progress.snapshots, progress.events, progress.cuts) == ({5, 10}, 5, 2)


def test_a_copy_shares_nothing_that_changes_and_no_call_streams_it():
    ended, cut, streamed = (dataclasses.replace(generation_of(), id=id_) for id_ in "abc")
    ended.finish(LENGTH)
    cut.finish_reason = DEADLINE
    original, copy = session_of(ended, cut, streamed), Session("t", "m", "d", "n", 60.0, 0.0, 0.0)
    copy.copy_from(original)
    assert copy.transcript == original.transcript
    assert [g.finish_reason for g in copy.generations] == [LENGTH, DEADLINE, FinishReason.CANCELLED]
    assert [g.finished for g in copy.generations] == [True, False, False]
    copy.transcript.append(1)
    copy.generations[0].changes.clear()
    assert (len(original.transcript), len(ended.changes), streamed.finish_reason) == (20, 3, None)
    for last, reason in ((ended, LENGTH), (cut, DEADLINE)):
        copy.copy_from(session_of(last))
        assert copy.generations[-1].finish_reason == reason


def test_the_hash_of_a_prefix_is_dropped_with_any_of_its_tokens():
    session = session_of()
    session.prefix_hash = TokenHash()
    session.prefix_hash.add(0, session.transcript[:10])
    session.cut_transcript(10)
    assert (len(session.transcript), session.prefix_hash.position) == (10, 10)
    session.cut_transcript(9)
    assert (len(session.transcript), session.prefix_hash) == (9, None)


def test_states_that_are_dropped_are_not_taken_for_stored_ones():
    session, state = session_of(), np.zeros(1, dtype=np.float32)
    session.advance(state, 0)
    assert session.state is state
    session.store_progress.snapshots = frozenset({0})
    session.drop_states()
    assert (session.state, session.consumed, session.snapshots) == (None, 0, {})
    assert session.store_progress.snapshots == frozenset()
