"""Turns drawn tokens into text that may be sent: withholds what may become a stop, cuts at one that is complete.

How much is withheld after a token depends on the generation's tokens alone, so a resumed stream goes on without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence

from gruve.decode.stops import StopTable


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

    def seek(self, drawn: int, recent: Sequence[int]) -> None:
        """Stands where it would after `drawn` tokens, of which `recent` are those since the last prompt."""
        self._state, self._drawn, self._withheld, self.matched = 0, drawn, "", None
        if self._stops is None:
            return
        text = ""
        longest = max(map(len, self._stops.strings), default=0)
        for token in reversed(recent):
            if len(text) >= longest:  # what stands further back can begin no stop any more
                break
            text = self._texts[token] + text
        at = 0
        while True:  # over the stops that min_tokens had it pass over
            self._state, _, used = self._stops.walk(self._state, text[at:])
            if used is None:
                break
            at += used
        self._withheld = text[len(text) - int(self._stops.depth[self._state]) :]

    def finish(self) -> str:
        """What was withheld in vain, as no stop can be completed across what follows."""
        self._state = 0
        released, self._withheld = self._withheld, ""
        return released
