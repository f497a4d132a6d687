"""Assigns slots to sequences and chooses the rows of each call. Pure: no tensors, threads or clocks.

Tenants share the machine by tokens served, prompt tokens included, in proportion to their weights: each has a virtual
counter, the tokens served to it divided by its weight, and the place of a call goes to the tenant with the least
counter that still has a row (virtual token counters; Sheng et al., "Fairness in Serving Large Language Models", 2024).
A tenant is *backlogged* while it has ready rows that calls leave out. One that has been idle, or whose rows all fitted
into a call, is lifted to the least counter of the backlogged ones: what it did not use it cannot claim later.

So while two tenants are backlogged, the tokens served to each, divided by its weight, differ by at most `3 R S / w`,
however many streams each has: `R` is the rows of the calls in flight, `S` the steps of a call (`MAX_STEPS`) and `w` the
lesser weight. Rows in flight cause the difference: what a call serves is known when it returns.

A tenant with at most `OWN_CALL_ROWS` rows, prompts among them, gets a call of its own when its turn comes: the more
rows a call has, the longer it takes, and the tenant's first tokens would wait for the rows of others, step by step.

Slots are shared alike: a free one goes to the waiting tenant that holds the fewest for its weight, and within a tenant
to the first that came. If none is free, `preemptable` names running sequences of the tenant that holds the most.

Within a tenant `tenant_queue.py` orders the rows. With one tenant that is the whole schedule.

Several calls may be in flight: a row in a call is in no queue until `finish_call` puts it back.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator

from gruve.engine.sequence import Sequence
from gruve.engine.tenant_queue import TenantQueue

OWN_CALL_ROWS = 4
"""A tenant with at most this many rows may get a call of its own, if others have more rows than this."""
MAX_PREEMPTED = 16
"""How many sequences lose their slot at a time; the next ones follow when these have left."""


class Scheduler:
    """The tenants' queues and the slots. The caller bounds how many sequences wait."""

    def __init__(self, slots: int, micro_batch: int) -> None:
        """`micro_batch` is the most rows of a call, at least 2, so that prompting and decoding rows can share one."""
        if micro_batch < 2:
            raise ValueError(f"micro_batch is {micro_batch}; at least 2")
        self.micro_batch = micro_batch
        self.running: dict[int, Sequence] = {}
        self.waiting = 0
        """How many sequences wait for a slot."""
        self.ready_rows = 0
        """Running rows that a call could take now, paced ones excepted."""
        self.in_flight = 0
        """Rows of the calls in flight; a row in two calls counts twice."""
        self._tenants: dict[str, TenantQueue] = {}
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._preempted: set[int] = set()
        """Sequences that `preemptable` has named and that still hold their slot."""
        self._paced: list[tuple[float, int, Sequence]] = []
        """A heap of (time, tiebreak, sequence); entries of sequences that left or moved on are skipped."""
        self._slowed_by_clients = 0
        """How many running sequences are; see `Sequence.slowed_by_client`."""
        self._tiebreak = itertools.count()
        self._counting = False
        """Whether there are several tenants; for one alone nothing is counted."""
        self._floor = 0.0
        """The least counter of the tenants that the latest call left rows of; see `_lift`."""
        self._row_tokens = 1.0
        """How many tokens a row of the latest call got; the estimate for rows in flight."""

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        """Appends a sequence to its tenant's waiting queue, or puts it in front of it (`first`)."""
        queue = self._tenants.get(sequence.tenant)
        if queue is None:
            if self._tenants:
                self._begin_counting()
            queue = self._tenants[sequence.tenant] = TenantQueue(sequence.weight, next(self._tiebreak))
        queue.weight = sequence.weight
        queue.waiting[sequence.id] = sequence
        if first:
            queue.waiting.move_to_end(sequence.id, last=False)
        self.waiting += 1

    def admit(self) -> list[Sequence]:
        """Assigns free slots to waiting sequences and returns those that got one."""
        admitted: list[Sequence] = []
        if not (self._free and self.waiting):
            return admitted
        heap = [(_slots_held(q, 1), q.order, q) for q in self._tenants.values() if q.waiting]
        heapq.heapify(heap)
        while self._free and heap:
            queue = heap[0][2]
            _, sequence = queue.waiting.popitem(last=False)
            self.waiting -= 1
            sequence.slot = self._free.pop()
            self.running[sequence.id] = queue.running[sequence.id] = sequence
            self._slowed_by_clients += sequence.slowed_by_client
            self._enqueue(sequence)
            admitted.append(sequence)
            if queue.waiting:
                heapq.heapreplace(heap, (_slots_held(queue, 1), queue.order, queue))
            else:
                heapq.heappop(heap)
        return admitted

    def preemptable(self) -> list[Sequence]:
        """Running sequences that the caller is to end and add again, so that tenants with fewer slots get theirs.

        A slot moves only if the tenant that gets it still holds fewer for its weight than the other one did before. Of
        a tenant's sequences those that got their slots last are chosen, and at most `MAX_PREEMPTED` at a time.
        """
        if self._free or self._preempted or not self.waiting or not self._counting:
            return []
        chosen: list[Sequence] = []
        queues = list(self._tenants.values())
        moved = dict.fromkeys(queues, 0)
        victims = {queue: _latest_first(queue) for queue in queues}
        while len(chosen) < MAX_PREEMPTED:
            waiting = [q for q in queues if len(q.waiting) > moved[q]]
            gains = min(waiting, key=lambda q: _slots_held(q, moved[q] + 1), default=None)
            loses = max(queues, key=lambda q: _slots_held(q, moved[q]))
            if gains is None or _slots_held(gains, moved[gains] + 1) >= _slots_held(loses, moved[loses]):
                break
            victim = next(victims[loses], None)
            if victim is None:
                break
            chosen.append(victim)
            moved[gains] += 1
            moved[loses] -= 1
        self._preempted.update(sequence.id for sequence in chosen)
        return chosen

    def running_of(self, tenant: str) -> int:
        """How many of a tenant's sequences hold a slot. Any thread may ask."""
        queue = self._tenants.get(tenant)
        return 0 if queue is None else len(queue.running)

    def prospect(self, tenant: str, weight: float) -> tuple[int, list[Sequence]]:
        """The slots that a new sequence of a tenant may get, and the sequences that hold them, longest first.

        These are all slots while no other tenant waits for one, and otherwise the tenant's share. A slot that the
        tenant may take from another counts as free. Any thread may ask.
        """
        queues, own = list(self._tenants.values()), self._tenants.get(tenant)
        others = [queue for queue in queues if queue is not own]
        total = weight + sum([queue.weight for queue in others])
        share = math.ceil(self.slots * weight / total)
        held = 0 if own is None else len(own.running)
        slots, holders = self.slots, list(self.running.values())
        if any(queue.waiting for queue in others):
            slots, holders = max(share, held), [] if own is None else list(own.running.values())
        return slots, holders[: slots - max(0, share - held)]

    def pick(self, now_s: float, max_rows: int | None = None) -> list[Sequence]:
        """Takes the rows of the next call from their queues: at most `max_rows`, and at most a micro-batch.

        They count as in a call; `finish_call` puts them back.
        """
        self._wake(now_s)
        places = self.micro_batch if max_rows is None else min(max_rows, self.micro_batch)
        rows = [row for queue, share in self._shares(places) for row in queue.take(share)]
        self.ready_rows -= len(rows)
        self.start_call(rows)
        if self._counting:
            self._update_floor()
        return rows

    def start_call(self, rows: list[Sequence]) -> None:
        """Counts rows into a call; `pick` does so itself, so only rows that another call in flight has need this."""
        for sequence in rows:
            sequence.in_flight += 1
        self.in_flight += len(rows)
        if self._counting:
            for sequence in rows:
                self._tenants[sequence.tenant].in_flight += 1

    def finish_call(self, rows: list[Sequence]) -> None:
        """Puts the rows of a call that has returned back into their queues; ended ones leave and free their slot.

        A prompt that two more calls will finish goes to the front. Otherwise all prompts of a burst would finish last.
        """
        self.in_flight -= len(rows)
        if self._counting and rows:
            self._count(rows)
        for sequence in rows:
            sequence.in_flight -= 1
            if sequence.in_flight:
                continue
            if sequence.ended:
                self.remove(sequence)
            else:
                self._enqueue(sequence)
        for sequence in reversed(rows):
            if sequence.forced_left < 2 * sequence.last_forced and not sequence.ended:
                self._tenants[sequence.tenant].hurry(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Removes a waiting or running sequence and frees its slot. An unknown one is ignored.

        If the sequence is in a call, `finish_call` comes first.
        """
        queue = self._tenants.get(sequence.tenant)
        if queue is None:
            return
        self._preempted.discard(sequence.id)
        if queue.waiting.pop(sequence.id, None) is not None:
            self.waiting -= 1
        self.ready_rows -= queue.discard(sequence)
        if queue.running.pop(sequence.id, None) is not None:
            del self.running[sequence.id]
            self._slowed_by_clients -= sequence.slowed_by_client
            assert sequence.slot is not None  # noqa: S101 - a running sequence has one
            self._free.append(sequence.slot)
        if queue.empty:
            del self._tenants[sequence.tenant]
            self._counting = len(self._tenants) > 1

    def grant(self, sequence: Sequence, credit: int = 0, window: int = 0) -> None:
        """Adds to a sequence's credit and window, and unparks it. A sequence without a bound stays without."""
        was_parked = sequence.parked
        if sequence.credit is not None:
            sequence.credit += credit
        if sequence.window is not None:
            sequence.window += window
        if was_parked and not sequence.parked and sequence.id in self.running and not sequence.in_flight:
            self._enqueue(sequence)

    @property
    def is_full(self) -> bool:
        """Whether every slot has a sequence, and none of them is slowed down by its client."""
        return len(self.running) == self.slots and not self._slowed_by_clients

    def ready(self) -> bool:
        """Whether there is a row to call or a waiting sequence to admit, paced rows excepted."""
        return bool(self.ready_rows or (self._free and self.waiting))

    def next_wake_s(self) -> float | None:
        """When the first paced row may be called again, or None."""
        while self._paced and not self._is_paced(*self._paced[0]):
            heapq.heappop(self._paced)
        return self._paced[0][0] if self._paced else None

    def _wake(self, now_s: float) -> None:
        """Puts paced rows whose time has come into their queues."""
        while (at := self.next_wake_s()) is not None and at <= now_s:
            _, _, sequence = heapq.heappop(self._paced)
            self._put(sequence)

    def _is_paced(self, at: float, _tiebreak: int, sequence: Sequence) -> bool:
        """Whether a heap entry is still valid: its sequence runs, waits for that time, and is in no queue or call."""
        return (
            sequence.id in self.running
            and not sequence.in_flight
            and sequence.ready_s == at
            and sequence not in self._tenants[sequence.tenant]
        )

    def _enqueue(self, sequence: Sequence) -> None:
        """Puts a running row where it belongs: nowhere if it is parked, on the heap if it is paced, or in a queue."""
        if sequence.parked:
            return
        if sequence.forced_left == 0 and sequence.ready_s > 0.0:
            heapq.heappush(self._paced, (sequence.ready_s, next(self._tiebreak), sequence))
            return
        self._put(sequence)

    def _put(self, sequence: Sequence) -> None:
        """Puts a row into its tenant's queue. A tenant that had no ready row is lifted to the others' counters."""
        queue = self._tenants[sequence.tenant]
        if self._counting and not queue.ready:
            queue.served = max(queue.served, self._floor)
        (queue.prompting if sequence.prompting else queue.decoding)[sequence.id] = sequence
        self.ready_rows += 1

    def _begin_counting(self) -> None:
        """Begins to count what tenants are served, when another one joins."""
        if not self._counting:
            self._counting = True
            for queue in self._tenants.values():
                queue.in_flight = sum([sequence.in_flight for sequence in queue.running.values()])
            for sequence in self.running.values():
                sequence.take_served()
        self._update_floor()

    def _count(self, rows: list[Sequence]) -> None:
        """Counts what a call that has returned has served to each row's tenant."""
        total = 0
        for sequence in rows:
            queue, tokens = self._tenants[sequence.tenant], sequence.take_served()
            queue.in_flight -= 1
            queue.served += tokens / queue.weight
            total += tokens
        self._row_tokens = max(1.0, total / len(rows))

    def _update_floor(self) -> None:
        """Sets the counter to which idle tenants are lifted: the least of the backlogged tenants' ones.

        If none is backlogged, every tenant gets what it asks for and none is behind: then it is the greatest counter.
        """
        backlogged = [queue.served for queue in self._tenants.values() if queue.ready]
        self._floor = min(backlogged) if backlogged else max([q.served for q in self._tenants.values()], default=0.0)

    def _shares(self, places: int) -> Iterable[tuple[TenantQueue, int]]:
        """How many of a call's places each tenant gets.

        Each place goes to the tenant with the least counter, in which rows in flight and places of this call count as
        if each were served what a row of the latest call was.
        """
        ready = [queue for queue in self._tenants.values() if queue.ready]
        if len(ready) > 1 and (few := self._few(ready, places)):
            return few
        if len(ready) == 1 or self.ready_rows <= places:
            return [(queue, places if len(ready) == 1 else queue.ready) for queue in ready]
        tokens = self._row_tokens
        heap = [(queue.served + queue.in_flight * tokens / queue.weight, queue.order, queue) for queue in ready]
        heapq.heapify(heap)
        shares: dict[TenantQueue, int] = dict.fromkeys(ready, 0)
        for _ in range(places):
            counter, order, queue = heap[0]
            shares[queue] += 1
            if shares[queue] < queue.ready:
                heapq.heapreplace(heap, (counter + tokens / queue.weight, order, queue))
            else:
                heapq.heappop(heap)
        return [(queue, share) for queue, share in shares.items() if share]

    def _few(self, ready: list[TenantQueue], places: int) -> list[tuple[TenantQueue, int]]:
        """The tenants with few rows whose prompts get a call of their own; none if there is no such tenant.

        They come before all others by their counters as well, so no tenant gets more than its share this way.
        """
        tokens = self._row_tokens
        order = sorted(ready, key=lambda q: (q.served + q.in_flight * tokens / q.weight, q.ready))
        chosen, rows = [], 0
        for queue in order:
            rows += queue.ready
            if not queue.prompting or queue.in_flight or rows > min(places, OWN_CALL_ROWS):
                break
            chosen.append((queue, queue.ready))
        left = self.ready_rows - sum([share for _, share in chosen])
        return chosen if left > OWN_CALL_ROWS else []


def _slots_held(queue: TenantQueue, more: int) -> float:
    """How many slots a tenant would hold for its weight with `more` of them."""
    return (len(queue.running) + more) / queue.weight


def _latest_first(queue: TenantQueue) -> Iterator[Sequence]:
    """A tenant's running sequences, those that got their slots last first; rows in a call, which has to return, last.

    Sequences that are ending anyway are left out.
    """
    for in_call in (False, True):
        for sequence in reversed(queue.running.values()):
            if bool(sequence.in_flight) == in_call and sequence.finish_requested is None:
                yield sequence
