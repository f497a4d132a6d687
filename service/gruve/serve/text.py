"""Turns drawn tokens into text that may be sent: withholds what may become a stop, cuts at one that is complete.

How much is withheld after a token depends on the generation's tokens alone, so a resumed stream goes on without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence

from gruve.engine.stops import StopTable


class TextAssembler:
    """The text of one generation's drawn tokens, fed in order from its first."""

    def __init__(self, texts: Sequence[str], stops: StopTable | None, min_tokens: int) -> None:
        self._texts = texts
        self._stops = stops
        self._min_tokens = min_tokens
        self._state = 0
        self._drawn = 0
        self._withheld = ""
        self.matched: str | int | None = None
        """The stop string or stop token id that ended it."""

    def feed(self, token: int) -> str:
        """Takes the next drawn token and returns the text that has become certain."""
        text = self._texts[token]
        if self._stops is None or self.matched is not None:
            return text
        self._drawn += 1
        may_stop = self._drawn >= self._min_tokens
        at = 0
        while True:
            self._state, index, used = self._stops.walk(self._state, text[at:])
            if index is None or used is None:
                break
            at += used
            if may_stop:
                self.matched = self._stops.strings[index]
                released = (self._withheld + text[:at])[: -len(self.matched)]
                self._withheld = ""
                return released
        if may_stop and token in self._stops.token_ids:
            self.matched = token
            return self.finish()
        self._withheld += text
        certain = len(self._withheld) - int(self._stops.depth[self._state])
        released, self._withheld = self._withheld[:certain], self._withheld[certain:]
        return released

    def finish(self) -> str:
        """What was withheld in vain."""
        released, self._withheld = self._withheld, ""
        return released
