"""Assigns slots to sequences and chooses the rows of each call. Pure: no tensors, threads or clocks.

Waiting sequences get free slots in order of arrival. A call takes a micro-batch of the running rows. They stand in two
queues: rows that have generated nothing yet (prompting) and all others (decoding). Prompting rows go first. Within a
queue rows take turns, except that a prompt that two more calls will finish goes to the front.

While both queues have more rows than places, each gets half of a call in the long run; prompting rows may be up to
`MAX_PROMPT_LEAD` places ahead. A burst of prompts is then read at once, and decoding rows get the places back later; a
flood of prompts gets half. So no prompt waits for more than ceil(3 rows / half) calls, and no decoding row for more
than ceil((rows + MAX_PROMPT_LEAD) / half).

Several calls may be in flight: a row in a call is in no queue until `finish_call` puts it back.
"""

from __future__ import annotations

import collections
import heapq
import itertools

from gruve.engine.sequence import Sequence

MICRO_BATCH = 64
MAX_PROMPT_LEAD = 128
"""How many places beyond their half prompting rows may take before decoding rows get as many back."""


class Scheduler:
    """The waiting queue, the slots and the running rows' queues. The caller bounds how many sequences wait."""

    def __init__(self, slots: int, micro_batch: int = MICRO_BATCH) -> None:
        """`micro_batch` is at least 2, so that both queues can have a share of a call."""
        if micro_batch < 2:
            raise ValueError(f"micro_batch is {micro_batch}; at least 2")
        self.micro_batch = micro_batch
        self.waiting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self.running: dict[int, Sequence] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._prompting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self._decoding: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self._paced: list[tuple[float, int, Sequence]] = []
        """A heap of (time, tiebreak, sequence); entries of sequences that left or moved on are skipped."""
        self._tiebreak = itertools.count()
        self._prompt_lead = 0
        """Places that prompting rows took beyond their half and decoding rows have not got back."""
        self.in_flight = 0
        """Rows of the calls in flight; a row in two calls counts twice."""

    @property
    def ready_rows(self) -> int:
        """Running rows that a call could take now, paced ones excepted."""
        return len(self._prompting) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        """Appends a sequence to the waiting queue."""
        self.waiting[sequence.id] = sequence

    def admit(self) -> list[Sequence]:
        """Assigns free slots to waiting sequences, first come first served, and returns those that got one."""
        admitted = []
        while self._free and self.waiting:
            _, sequence = self.waiting.popitem(last=False)
            sequence.slot = self._free.pop()
            self.running[sequence.id] = sequence
            self._enqueue(sequence)
            admitted.append(sequence)
        return admitted

    def pick(self, now_s: float, max_rows: int | None = None) -> list[Sequence]:
        """Takes the rows of the next call from their queues: at most `max_rows`, and at most a micro-batch.

        They count as in a call; `finish_call` puts them back.
        """
        self._wake(now_s)
        places = self.micro_batch if max_rows is None else min(max_rows, self.micro_batch)
        half = max(1, places // 2)
        allowed = max(min(places, half + MAX_PROMPT_LEAD - self._prompt_lead), places - len(self._decoding))
        prompting = min(len(self._prompting), allowed)
        decoding = min(len(self._decoding), places - prompting)
        due = min(len(self._decoding), places - half)
        self._prompt_lead = max(0, self._prompt_lead + due - decoding) if decoding < len(self._decoding) else 0
        rows = [
            *itertools.islice(self._prompting.values(), prompting),
            *itertools.islice(self._decoding.values(), decoding),
        ]
        for sequence in rows:
            self._dequeue(sequence)
        self.start_call(rows)
        return rows

    def start_call(self, rows: list[Sequence]) -> None:
        """Counts rows into a call; `pick` does so itself, so only rows that another call in flight has need this."""
        for sequence in rows:
            sequence.in_flight += 1
        self.in_flight += len(rows)

    def finish_call(self, rows: list[Sequence]) -> None:
        """Puts the rows of a call that has returned back into their queues; ended ones leave and free their slot.

        A prompt that two more calls will finish goes to the front. Otherwise all prompts of a burst would finish last.
        """
        self.in_flight -= len(rows)
        for sequence in rows:
            sequence.in_flight -= 1
            if sequence.in_flight:
                continue
            if sequence.ended:
                self.remove(sequence)
            else:
                self._enqueue(sequence)
        for sequence in reversed(rows):
            if sequence.id in self._prompting and sequence.forced_left < 2 * sequence.last_forced:
                self._prompting.move_to_end(sequence.id, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Removes a waiting or running sequence and frees its slot. An unknown one is ignored.

        If the sequence is in a call, `finish_call` comes first.
        """
        self.waiting.pop(sequence.id, None)
        self._dequeue(sequence)
        if self.running.pop(sequence.id, None) is not None and sequence.slot is not None:
            self._free.append(sequence.slot)

    def grant(self, sequence: Sequence, tokens: int) -> None:
        """Adds to a sequence's credit and unparks it if it had none. A sequence without a bound stays without."""
        if sequence.credit is None:
            return
        parked = sequence.credit == 0 and sequence.forced_left == 0
        sequence.credit += tokens
        if parked and sequence.id in self.running and not sequence.in_flight:
            self._enqueue(sequence)

    def ready(self) -> bool:
        """Whether there is a row to call or a waiting sequence to admit, paced rows excepted."""
        return bool(self._prompting or self._decoding or (self._free and self.waiting))

    def next_wake_s(self) -> float | None:
        """When the first paced row may be called again, or None."""
        while self._paced and not self._is_paced(*self._paced[0]):
            heapq.heappop(self._paced)
        return self._paced[0][0] if self._paced else None

    def _wake(self, now_s: float) -> None:
        """Puts paced rows whose time has come into their queues."""
        while (at := self.next_wake_s()) is not None and at <= now_s:
            _, _, sequence = heapq.heappop(self._paced)
            self._queue_of(sequence)[sequence.id] = sequence

    def _is_paced(self, at: float, _tiebreak: int, sequence: Sequence) -> bool:
        """Whether a heap entry is still valid: its sequence runs, waits for that time, and is in no queue or call."""
        return (
            sequence.id in self.running
            and not sequence.in_flight
            and sequence.ready_s == at
            and sequence.id not in self._decoding
            and sequence.id not in self._prompting
        )

    def _enqueue(self, sequence: Sequence) -> None:
        """Puts a running row where it belongs: nowhere without credit (parked), on the heap if paced, or in a queue."""
        generating = sequence.forced_left == 0
        if generating and sequence.credit == 0:
            return
        if generating and sequence.ready_s > 0.0:
            heapq.heappush(self._paced, (sequence.ready_s, next(self._tiebreak), sequence))
            return
        self._queue_of(sequence)[sequence.id] = sequence

    def _dequeue(self, sequence: Sequence) -> None:
        self._prompting.pop(sequence.id, None)
        self._decoding.pop(sequence.id, None)

    def _queue_of(self, sequence: Sequence) -> collections.OrderedDict[int, Sequence]:
        return self._prompting if sequence.prompting else self._decoding
