"""Decides who takes part in the next call. Knows nothing of tensors, threads or clocks: time is a number it is given.

Waiting sequences take free slots in order of arrival. Of the running ones a call takes a micro-batch: those that have
drawn nothing yet go first, and within each of the two groups turns go round, but a prompt that is nearly read is read
to its end. While both groups want places, prompts may be `MOST_AHEAD` places ahead of their half: a burst is read at
once and who decodes gets back later what it waited for, a flood gets half. So no prompt waits more than ceil(3 rows /
half) calls, and no decoding row more than ceil((rows + MOST_AHEAD) / half). Several calls may be under way: a row that
was picked is out of the turns until it is settled.
"""

from __future__ import annotations

import collections
import heapq
import itertools

from gruve.engine.sequence import Sequence

MICRO_BATCH = 64
MOST_AHEAD = 128
"""How many places prompts may have beyond their half before who decodes has got back as many."""


class Scheduler:
    """The queue, the slots and the turns. How many may wait is for those to say who add them."""

    def __init__(self, slots: int, micro_batch: int = MICRO_BATCH) -> None:
        """`micro_batch` is at least 2, or prompts and decoding rows could not both have a share of it."""
        if micro_batch < 2:
            raise ValueError(f"micro_batch is {micro_batch}; at least 2")
        self.micro_batch = micro_batch
        self.waiting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self.running: dict[int, Sequence] = {}
        self._free = list(range(slots - 1, -1, -1))
        # Turns: sequence ids in order; ids that have left or parked are skipped when their turn comes.
        self._prompting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self._decoding: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self._paced: list[tuple[float, int, Sequence]] = []
        self._tie = itertools.count()
        self._ahead = 0
        """Places that decoding rows would have had if prompts had kept to their half, and have not got back yet."""
        self.in_flight = 0
        """Rows that calls have, each as often as calls have it."""

    @property
    def ready_rows(self) -> int:
        """Running rows that a call could take now, pace aside."""
        return len(self._prompting) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for a slot."""
        self.waiting[sequence.id] = sequence

    def admit(self) -> list[Sequence]:
        """Gives free slots to waiting sequences, first come first served, and returns those that got one."""
        admitted = []
        while self._free and self.waiting:
            _, sequence = self.waiting.popitem(last=False)
            sequence.slot = self._free.pop()
            self.running[sequence.id] = sequence
            self._file(sequence)
            admitted.append(sequence)
        return admitted

    def pick(self, now_s: float, most: int | None = None) -> list[Sequence]:
        """The rows of the next call, in the order of their turns; `settle` puts them at the end of their group.

        `most` are taken, if that is less than a micro-batch.
        """
        self._wake(now_s)
        most = self.micro_batch if most is None else min(most, self.micro_batch)
        half = max(1, most // 2)
        allowed = max(min(most, half + MOST_AHEAD - self._ahead), most - len(self._decoding))
        prompting = min(len(self._prompting), allowed)
        decoding = min(len(self._decoding), most - prompting)
        due = min(len(self._decoding), most - half)
        self._ahead = max(0, self._ahead + due - decoding) if decoding < len(self._decoding) else 0
        turns = itertools.chain(
            itertools.islice(self._prompting.values(), prompting), itertools.islice(self._decoding.values(), decoding)
        )
        rows = list(turns)
        for sequence in rows:
            self._unfile(sequence)
        self.take(rows)
        return rows

    def take(self, rows: list[Sequence]) -> None:
        """Has a call take rows, picked ones or such as another call has and that go on before it returns."""
        for sequence in rows:
            sequence.in_flight += 1
        self.in_flight += len(rows)

    def settle(self, rows: list[Sequence]) -> None:
        """After a call: files each row that took part by what it does next; finished ones leave and free their slot.

        A prompt that two more calls will finish goes on first: all of a burst would be done last otherwise.
        """
        self.in_flight -= len(rows)
        for sequence in rows:
            sequence.in_flight -= 1
            if sequence.in_flight:
                continue
            if sequence.gone:
                self.remove(sequence)
            else:
                self._file(sequence)
        for sequence in reversed(rows):
            if sequence.id in self._prompting and sequence.forced_left < 2 * sequence.read:
                self._prompting.move_to_end(sequence.id, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, waiting or running; its slot is free for the next `admit`. Unknown ones are ignored.

        One that is in flight must be settled first.
        """
        self.waiting.pop(sequence.id, None)
        self._unfile(sequence)
        if self.running.pop(sequence.id, None) is not None and sequence.slot is not None:
            self._free.append(sequence.slot)

    def grant(self, sequence: Sequence, tokens: int) -> None:
        """Adds to a sequence's credit; one that was parked for want of it takes part again. No bound stays no bound."""
        if sequence.credit is None:
            return
        parked = sequence.credit == 0 and sequence.forced_left == 0
        sequence.credit += tokens
        if parked and sequence.id in self.running and not sequence.in_flight:
            self._file(sequence)

    def ready(self) -> bool:
        """Whether there is something to do, pace aside: a call to make, or a free slot that somebody waits for."""
        return bool(self._prompting or self._decoding or (self._free and self.waiting))

    def next_wake_s(self) -> float | None:
        """When the first paced sequence may go on, or None."""
        while self._paced and not self._is_paced(*self._paced[0]):
            heapq.heappop(self._paced)
        return self._paced[0][0] if self._paced else None

    def _wake(self, now_s: float) -> None:
        while (at := self.next_wake_s()) is not None and at <= now_s:
            _, _, sequence = heapq.heappop(self._paced)
            self._turns(sequence)[sequence.id] = sequence

    def _is_paced(self, at: float, _tie: int, sequence: Sequence) -> bool:
        """Whether a heap entry still holds: its sequence runs, waits for that very time and is in no turn or call."""
        return (
            sequence.id in self.running
            and not sequence.in_flight
            and sequence.ready_s == at
            and sequence.id not in self._decoding
            and sequence.id not in self._prompting
        )

    def _file(self, sequence: Sequence) -> None:
        """Puts a running sequence where it belongs: parked without credit, paced until its time, or in a turn."""
        drawing = sequence.forced_left == 0
        if drawing and sequence.credit == 0:
            return
        if drawing and sequence.ready_s > 0.0:
            heapq.heappush(self._paced, (sequence.ready_s, next(self._tie), sequence))
            return
        self._turns(sequence)[sequence.id] = sequence

    def _unfile(self, sequence: Sequence) -> None:
        self._prompting.pop(sequence.id, None)
        self._decoding.pop(sequence.id, None)

    def _turns(self, sequence: Sequence) -> collections.OrderedDict[int, Sequence]:
        return self._prompting if sequence.prompting else self._decoding
