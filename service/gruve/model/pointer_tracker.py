"""Computes the pointers of a transcript fast: token by token, or for a whole sequence at once.

Both give the values that `pointers.point` defines, and are tested against it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.model.pointers import BAR_TOKENS, MAX_TRANSPOSED, WINDOW, Pointed, PointerConfig

Int32s = NDArray[np.int32]


@dataclasses.dataclass(slots=True)
class _Bar:
    """One bar: where it opens, and where each place occurs first in it."""

    opening: int
    part: int = 0
    """The number of the part in which the bar was completed."""
    first: dict[int, int] = dataclasses.field(default_factory=dict)
    """Place -> the first position with it."""
    first_with: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    """(place, token) -> the first position with both."""
    first_in_scale: dict[int, int] = dataclasses.field(default_factory=dict)
    """Place -> the first position with it whose token is in the scale."""


class _Bars:
    """The bars of one window: the current place, and the completed bars."""

    def __init__(self, config: PointerConfig) -> None:
        self._config = config
        self._bar_tokens = frozenset(config.bar_tokens)
        self._part_tokens = frozenset(config.part_tokens)
        self._scale = frozenset(config.scale)
        self._open: _Bar | None = None
        self._completed: deque[_Bar] = deque()
        self._part = 0
        self.place: int | None = None
        """The place of the present token; None if it is unknown."""

    def feed(self, t: int, token: int, begin: int) -> None:
        """Takes the token at position `t` of a window that begins at position `begin`."""
        while self._completed and self._completed[0].opening < begin:
            self._completed.popleft()
        bar, place = self._open, self.place
        if token in self._bar_tokens:
            if bar is not None and bar.opening >= begin and (place is None or place > 0):
                bar.part = self._part
                self._completed.append(bar)
            self._part += token in self._part_tokens
            self._open, self.place = _Bar(t), 0
        elif token == self._config.start_token:
            self._open, self.place = _Bar(t), 0
        elif bar is None or t - bar.opening >= BAR_TOKENS:
            self.place = None
        elif place is not None:
            self.place = place + self._config.advances[token]
        if self._open is not None and self.place is not None:
            self._open.first.setdefault(self.place, t)
            self._open.first_with.setdefault((self.place, token), t)
            if token in self._scale:
                self._open.first_in_scale.setdefault(self.place, t)

    def count(self) -> int:
        """The number of completed bars of the current part, at most the last row of the count table."""
        count = 0
        for bar in reversed(self._completed):
            if bar.part != self._part or count == self._config.counts:
                break
            count += 1
        return count

    def same_place(self, k: int, token: int) -> int:
        """The position that the pointer at distance `k` finds for the current token; -1 for none."""
        if self.place is None or len(self._completed) < k:
            return -1
        bar = self._completed[-k]
        found = bar.first_with.get((self.place, token))
        return bar.first.get(self.place, -1) if found is None else found

    def agreeing(self, k: int, token: int) -> int:
        """The position after which the transposed pointer at distance `k` stands; -1 for none."""
        if self.place is None or len(self._completed) < k:
            return -1
        bar = self._completed[-k]
        if token in self._scale:
            return bar.first_in_scale.get(self.place, -1)
        return bar.first_with.get((self.place, token), -1)


def transposed(
    config: PointerConfig, steps: Mapping[int, int], none: int, ids: Sequence[int], j: int, t: int, begin: int
) -> tuple[int, int]:
    """The token that a transposed pointer names, `none` for none, and its match length.

    `steps` maps each token of the scale to its place in it; `begin` is where the window begins.
    """
    moved, length = None, 0
    for back in range(min(j - begin + 1, MAX_TRANSPOSED)):
        there, here = ids[j - back], ids[t - back]
        low, high = steps.get(there), steps.get(here)
        if low is not None and high is not None:
            if moved is None:
                moved = high - low
            elif moved != high - low:
                break
        elif there != here:
            break
        length += 1
    if not moved:
        return none, 0
    named, match = ids[j + 1], min(length, max(config.matches - 1, 0))
    if named not in steps:
        return named, match
    at = steps[named] + moved
    return (config.scale[at], match) if 0 <= at < len(config.scale) else (none, 0)


class PointerTracker:
    """The pointers of one transcript, token by token. The time per token does not depend on the transcript's length.

    `feed` returns the result of `point` on everything fed so far. A new tracker that is fed the last 1,024 tokens of a
    transcript returns the same results from then on.
    """

    def __init__(self, config: PointerConfig, vocabulary_size: int) -> None:
        self._config = config
        self._none = vocabulary_size
        self._steps = {token: i for i, token in enumerate(config.scale)}
        self._restart()

    def _restart(self) -> None:
        """Starts a new window."""
        self._ids: list[int] = []
        self._dropped = 0  # how many tokens were removed from the front of `_ids`
        self._bars = _Bars(self._config)
        self._last: list[dict[tuple[int, ...], int]] = [{} for _ in self._config.followers]

    def feed(self, token: int) -> Pointed:
        """Consumes the next token and returns the pointers at it."""
        config = self._config
        if token == config.start_token:
            self._restart()
        self._ids.append(token)
        if len(self._ids) > 2 * WINDOW:
            del self._ids[:WINDOW]
            self._dropped += WINDOW
        t = self._dropped + len(self._ids) - 1
        begin = max(t + 1 - WINDOW, 0)
        if config.has_bars:
            self._bars.feed(t, token, begin)
        found = [self._bars.same_place(k, token) for k in config.bars]
        found += [self._follower(n, last, t, begin) for n, last in zip(config.followers, self._last, strict=True)]
        tokens = tuple(self._none if j < 0 else self._ids[j + 1 - self._dropped] for j in found)
        matches = tuple(0 if j < 0 else self._match(j, t, begin) for j in found)
        for k in config.transposed:
            token_there, match = self._transposed(self._bars.agreeing(k, token), t, begin)
            tokens += (token_there,)
            matches += (match,)
        count = self._bars.count() if config.counts else 0
        return Pointed(tokens, matches, config.place_row(self._bars.place), config.count_row(count))

    def _follower(self, n: int, last: dict[tuple[int, ...], int], t: int, begin: int) -> int:
        """The previous position of the last `n` tokens in the window, -1 if there is none.

        Stores the current position in `last`.
        """
        if t - n + 1 < begin:
            return -1
        gone = begin - 1 - self._dropped  # the index of the token that has just left the window
        if gone >= 0:
            key = tuple(self._ids[gone : gone + n])
            if last.get(key) == begin + n - 2:
                del last[key]
        key = tuple(self._ids[-n:])
        found = last.get(key, -1)
        last[key] = t
        return found

    def _transposed(self, j: int, t: int, begin: int) -> tuple[int, int]:
        """The token and the match length of a transposed pointer after position `j`, -1 for none."""
        if j < 0:
            return self._none, 0
        j, t, begin = j - self._dropped, t - self._dropped, begin - self._dropped
        return transposed(self._config, self._steps, self._none, self._ids, j, t, begin)

    def _match(self, j: int, t: int, begin: int) -> int:
        """The match length of position `j`."""
        ids, j, t, begin = self._ids, j - self._dropped, t - self._dropped, begin - self._dropped
        most = min(self._config.matches - 1, j - begin + 1)
        m = 0
        while m < most and ids[j - m] == ids[t - m]:
            m += 1
        return m


def point_all(config: PointerConfig, vocabulary_size: int, ids: Sequence[int]) -> Int32s:
    """The pointers at every token of a transcript, as rows of the tables: (T, 2 K + 2) in the order of `Pointed`."""
    tokens = np.asarray(ids, dtype=np.int32)
    begins = window_begins(config, tokens)
    rows = np.zeros((len(tokens), 2 * config.size + 2), dtype=np.int32)
    K, moved = config.size, config.size - len(config.transposed)
    sources = np.full((len(tokens), moved), -1, dtype=np.int32)
    if config.has_bars:
        bars, listed, steps = _Bars(config), tokens.tolist(), {token: i for i, token in enumerate(config.scale)}
        for t, (token, begin) in enumerate(zip(listed, begins.tolist(), strict=True)):
            if token == config.start_token:
                bars = _Bars(config)
            bars.feed(t, token, begin)
            sources[t, : len(config.bars)] = [bars.same_place(k, token) for k in config.bars]
            rows[t, 2 * K] = config.place_row(bars.place)
            rows[t, 2 * K + 1] = config.count_row(bars.count())
            for i, k in enumerate(config.transposed, moved):
                j = bars.agreeing(k, token)
                rows[t, i] = vocabulary_size
                if j >= 0:
                    rows[t, i], rows[t, K + i] = transposed(config, steps, vocabulary_size, listed, j, t, begin)
    sources[:, len(config.bars) :] = follower_sources(config, tokens, begins)
    rows[:, :moved] = np.where(sources >= 0, tokens[np.minimum(sources + 1, len(tokens) - 1)], vocabulary_size)
    rows[:, K : K + moved] = match_lengths(config, tokens, sources, begins)
    return rows


def window_begins(config: PointerConfig, tokens: Int32s) -> Int32s:
    """(T,): where the window of every token begins."""
    positions = np.arange(len(tokens), dtype=np.int32)
    starts = np.maximum.accumulate(np.where(tokens == config.start_token, positions, 0))
    begins: Int32s = np.maximum(starts, positions - (WINDOW - 1)).astype(np.int32)
    return begins


def follower_sources(config: PointerConfig, tokens: Int32s, begins: Int32s) -> Int32s:
    """(T, followers): the position that each follower pointer finds, -1 for none."""
    T = len(tokens)
    positions = np.arange(T)
    sources = np.full((T, len(config.followers)), -1, dtype=np.int32)
    # Two positions have equal ranks if the n tokens up to them are equal.
    ranks = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    single, distinct = ranks, int(ranks.max(initial=0)) + 1
    for n in range(1, max(config.followers, default=0) + 1):
        if n > 1:
            before = np.concatenate((np.full(1, -1, dtype=np.int64), ranks[:-1]))
            ranks = np.unique((before + 1) * distinct + single, return_inverse=True)[1].astype(np.int64)
        if n not in config.followers:
            continue
        order = np.argsort(ranks, kind="stable")
        again = ranks[order[1:]] == ranks[order[:-1]]
        found = np.full(T, -1, dtype=np.int64)
        found[order[1:][again]] = order[:-1][again]
        inside = (found - n + 1 >= begins) & (positions - n + 1 >= begins)
        sources[:, config.followers.index(n)] = np.where(inside, found, -1)
    return sources


def match_lengths(config: PointerConfig, tokens: Int32s, sources: Int32s, begins: Int32s) -> Int32s:
    """(T, pointers): the match length of each source, 0 where the source is -1."""
    matches = np.zeros_like(sources)
    positions = np.arange(len(tokens))[:, None]
    equal = sources >= 0
    for m in range(config.matches - 1):
        equal = equal & (sources - m >= begins[:, None])
        equal &= tokens[np.maximum(sources - m, 0)] == tokens[np.maximum(positions - m, 0)]
        matches += equal
    return matches
