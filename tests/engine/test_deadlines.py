"""The heap of deadlines against a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gruve.engine.deadlines import STALE, Deadlines

times = st.integers(0, 20).map(float)


@given(st.lists(times), st.sets(st.integers(0, 30)), st.lists(times).map(sorted))
def test_what_is_overdue_and_what_is_next_is_as_in_a_sorted_list(deadlines, ended, moments):
    alive = set(range(len(deadlines))) - ended
    heap, plain = Deadlines(alive), sorted((deadline, id_) for id_, deadline in enumerate(deadlines))
    for id_, deadline in enumerate(deadlines):
        heap.add(deadline, id_)
    for now in moments:
        overdue = [id_ for deadline, id_ in plain if deadline <= now]
        plain = [(deadline, id_) for deadline, id_ in plain if deadline > now]
        assert [id_ for id_ in heap.pop_overdue(now) if id_ in alive] == [id_ for id_ in overdue if id_ in alive]
        assert heap.next_s() == min((deadline for deadline, id_ in plain if id_ in alive), default=None)


def test_without_deadlines_nothing_is_overdue_or_next():
    assert Deadlines(set()).pop_overdue(1e9) == []
    assert Deadlines({1}).next_s() is None


def test_sequences_that_end_long_before_their_deadlines_leave_no_entries_behind():
    alive = {0}
    heap = Deadlines(alive)
    heap.add(1.0, 0)  # it comes first and does not end, so none after it comes to the top
    for sequence_id in range(1, 10 * STALE):
        alive.add(sequence_id)
        heap.add(100.0, sequence_id)
        alive.discard(sequence_id)
        assert heap.next_s() == 1.0
    assert len(heap) <= STALE + 3


def test_an_id_that_is_added_again_and_again_is_overdue_at_its_earliest_and_leaves_few_entries():
    heap = Deadlines({1})
    for deadline in range(10 * STALE):
        heap.add(float(deadline), 1)
    assert (heap.next_s(), heap.pop_overdue(0.0)) == (0.0, [1])
    assert len(heap) <= STALE + 3
