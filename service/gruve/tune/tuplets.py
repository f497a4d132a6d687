"""Tracks the open tuplets while a tune is read, including nested ones and ones that a bar line interrupts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Final

from gruve.tune.raw import RawEvent
from gruve.tune.score import Meter, Tuplet, default_into

_MAX_NUMBER: Final = 9
"""Of a tuplet's sign: any such squeezes every length to a whole number of ticks."""


class Tuplets:
    """The open tuplet. It writes tuplet marks into the events that it is given, and updates its own marks there.

    The scales of nested tuplets multiply, and the inner tuplet counts in the outer one for as many notes as its sign
    says: in `(3A(3BcdE` the inner three stand for the last two of the outer. The same sign twice in a row counts once.
    """

    def __init__(self, events: list[RawEvent]) -> None:
        self.events = events
        self.left = 0  # notes still to come
        self._place = -1  # of the mark among the events
        self._taken = 0  # notes so far
        self._outer: list[tuple[Tuplet, int]] = []  # a mark around this one, and the notes that it then has left
        self._again: Tuplet | None = None  # a mark to be written before the next note

    def begin(self, p: str, q: str | None, r: str | None, meter: Meter | None) -> bool:
        """Opens a tuplet by the numbers of its sign; False, without a change, if the open one cannot hold it."""
        count = int(p)
        into = int(q or default_into(count, meter))
        notes = int(r or count)
        if not self.left:
            self._outer.clear()
            self._write(Tuplet(count, into, notes))
            return True
        outer = self._mark()
        if (outer.count, outer.into, self._taken) == (count, into, 0):
            return True
        both = Fraction(outer.into * into, outer.count * count)
        if both == 1:
            both_count = both_into = 2
        else:
            both_count, both_into = both.denominator, both.numerator
        if not (2 <= both_count <= _MAX_NUMBER and both_into <= _MAX_NUMBER) or notes > _MAX_NUMBER:
            return False
        self._outer.append((outer, max(0, self.left - into)))
        self.cut()
        self._write(Tuplet(both_count, both_into, notes))
        return True

    def before_note(self) -> None:
        """Writes the mark of a tuplet that continues after an interruption."""
        if self._again:
            self._write(self._again)
            self._again = None

    def after_note(self) -> None:
        """Counts a note."""
        if not self.left:
            return
        self.left -= 1
        self._taken += 1
        while not self.left and self._outer:
            outer, left = self._outer.pop()
            if left:
                self.left, self._again = left, replace(outer, notes=left)

    def interrupt(self) -> None:
        """Ends the tuplet at a bar line, to continue it with the next note."""
        if self._again is None:
            mark, left = self._mark(), self.left
            self.cut()
            self.left, self._again = left, replace(mark, notes=left)

    def cut(self) -> None:
        """Ends the tuplet with its last note; a mark without notes is removed."""
        if self._again is None:
            if self._taken:
                self.events[self._place] = replace(self._mark(), notes=self._taken)
            else:
                del self.events[self._place]
        self._again, self.left = None, 0

    def _mark(self) -> Tuplet:
        mark = self._again or self.events[self._place]
        assert isinstance(mark, Tuplet)  # noqa: S101 - it was written there
        return mark

    def _write(self, mark: Tuplet) -> None:
        self._place, self._taken, self.left = len(self.events), 0, mark.notes
        self.events.append(mark)
