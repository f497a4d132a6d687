"""One tenant's sequences in the scheduler: those that wait for a slot, and those whose row a call could take.

Rows without a token yet (prompting) go before all others (decoding). Within a queue rows take turns, except that a
prompt that two more calls will finish goes to the front.

While both queues have more rows than places, each gets half of the tenant's places in the long run. Prompting rows may
first take all places of a few calls, and decoding rows get them back later: `LEAD_CALLS`, or `BURST_CALLS` while the
prompts that come next are short. A burst of requests is then read at once, and a flood of prompts gets half. So if the
tenant gets all places, no prompt waits for more than ceil(3 rows / half) calls, and no decoding row for more than
ceil(rows / half) + BURST_CALLS.

Pure: no tensors, threads or clocks. It knows no other tenant.
"""

from __future__ import annotations

import collections
import itertools

from gruve.engine.sequence import Sequence

LEAD_CALLS = 4
"""For how many calls prompting rows may take the places of decoding rows before those get their half. A call lasts some
10 ms, and a pause of 50 ms is hardly seen."""
BURST_CALLS = 16
"""The same while the next prompts are short. They are soon read, and the first tokens of a burst come sooner."""
SHORT_TOKENS = 64
"""A prompt is short if it has no more tokens left."""


class TenantQueue:
    """The sequences of one tenant; `Scheduler` moves them in and out."""

    def __init__(self, weight: float, order: int) -> None:
        """`weight` is the tenant's share of the machine relative to others; `order` decides between equal tenants."""
        self.weight = weight
        self.order = order
        self.served = 0.0
        """Tokens that calls have served to the tenant, divided by its weight: its virtual counter."""
        self.in_flight = 0
        """The tenant's rows in the calls in flight; a row in two calls counts twice."""
        self.waiting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self.running: dict[int, Sequence] = {}
        """The sequences that hold a slot, in the order in which they got it."""
        self.prompting: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        self.decoding: collections.OrderedDict[int, Sequence] = collections.OrderedDict()
        """The rows that a call could take, in the order of their turns."""
        self._prompt_lead = 0.0
        """Places that prompting rows took beyond their half and decoding rows have not got back."""

    def __contains__(self, sequence: Sequence) -> bool:
        """Whether a call could take the sequence's row."""
        return sequence.id in self.decoding or sequence.id in self.prompting

    @property
    def ready(self) -> int:
        """How many rows a call could take."""
        return len(self.prompting) + len(self.decoding)

    @property
    def empty(self) -> bool:
        """Whether the tenant has no sequence, running or waiting."""
        return not self.running and not self.waiting

    def hurry(self, sequence: Sequence) -> None:
        """Moves a prompting row to the front of its queue; any other is left where it is."""
        if sequence.id in self.prompting:
            self.prompting.move_to_end(sequence.id, last=False)

    def discard(self, sequence: Sequence) -> bool:
        """Removes a row from its queue; returns whether it was in one."""
        removed = self.prompting.pop(sequence.id, None) or self.decoding.pop(sequence.id, None)
        return removed is not None

    def take(self, places: int) -> list[Sequence]:
        """Removes and returns the rows of the next call: at most `places`, the tenant's share of the call."""
        prompting, decoding = self.prompting, self.decoding
        half = places // 2 or 0.5  # a single place goes to each queue every other time
        due = min(len(decoding), places - half)
        short = all(row.forced_left <= SHORT_TOKENS for row in itertools.islice(prompting.values(), places))
        lead_left = max(0.0, (BURST_CALLS if short else LEAD_CALLS) * due - self._prompt_lead)
        allowed = max(min(places, half + lead_left), places - len(decoding))
        prompts = min(len(prompting), int(allowed))
        others = min(len(decoding), places - prompts)
        self._prompt_lead = max(0.0, self._prompt_lead + due - others) if others < len(decoding) else 0.0
        rows = [*itertools.islice(prompting.values(), prompts), *itertools.islice(decoding.values(), others)]
        for sequence in rows[:prompts]:
            del prompting[sequence.id]
        for sequence in rows[prompts:]:
            del decoding[sequence.id]
        return rows
