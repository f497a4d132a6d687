"""Turns generated tokens into text to send: withholds what may become a stop string, and cuts at a complete one.

How much is withheld depends on the generation's tokens alone, so the text of a resumed stream has no gap.
"""

from __future__ import annotations

from collections.abc import Sequence

from gruve.decode.stops import StopTable


class TextAssembler:
    """The text of one generation's generated tokens, fed in order from the first."""

    def __init__(self, texts: Sequence[str], stops: StopTable | None, min_tokens: int) -> None:
        self._texts = texts
        self._stops = stops
        self._min_tokens = min_tokens
        self._state = 0
        self._generated = 0
        self._withheld = ""
        self.matched: str | int | None = None
        """The stop string or stop token id that ended the generation."""

    def feed(self, token: int) -> str:
        """Takes the next token and returns the text that is no longer withheld."""
        text = self._texts[token]
        if self._stops is None or self.matched is not None:
            return text
        self._generated += 1
        may_stop = self._generated >= self._min_tokens
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

    def seek(self, generated: int, recent: Sequence[int]) -> None:
        """Resets to the state after `generated` tokens; `recent` are those since the last prompt."""
        self._state, self._generated, self._withheld, self.matched = 0, generated, "", None
        if self._stops is None:
            return
        text = ""
        longest = max(map(len, self._stops.strings), default=0)
        for token in reversed(recent):
            if len(text) >= longest:  # no stop string begins further back
                break
            text = self._texts[token] + text
        at = 0
        while True:  # past the stop strings that min_tokens ignored
            self._state, _, used = self._stops.walk(self._state, text[at:])
            if used is None:
                break
            at += used
        self._withheld = text[len(text) - int(self._stops.depth[self._state]) :]

    def finish(self) -> str:
        """Returns the withheld text: no stop string can be completed across what follows."""
        self._state = 0
        released, self._withheld = self._withheld, ""
        return released
