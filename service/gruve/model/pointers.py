"""Pointers: earlier tokens of the transcript that a model is shown as candidates for the next token.

This module has the configuration (`pointers` in `config.json`) and the definition: `point` is a pure function of the
transcript's last tokens, written for readability. `pointer_tracker.py` computes the same values fast, and is tested
against it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gruve.errors import ModelBroken

WINDOW = 1_024
"""The pointers depend on this many of the transcript's last tokens, the pending token included."""
BAR_TOKENS = 256
"""Only this many tokens of a bar, counted from its opening, have a place. The place of later ones is unknown."""
MAX_POINTERS = 16
BAR_DISTANCES = range(1, 64 + 1)
FOLLOWER_LENGTHS = range(1, 32 + 1)
MAX_ADVANCE = 1_000
MAX_PLACES = 256
MAX_PLACE_STEP = 1_000
MAX_COUNTS = 64
MAX_MATCHES = 32
MAX_TRANSPOSED = 32
"""A transposed bar is compared over this many tokens at most."""


class Pointed(NamedTuple):
    """The pointers at one token, as rows of the model's tables."""

    tokens: tuple[int, ...]
    """(K,): the token that each pointer names; the vocabulary's size V if it names none."""
    matches: tuple[int, ...]
    """(K,): each pointer's match length, 0 to `matches` - 1; 0 for a pointer that names no token."""
    place_row: int
    """The row of the place table; 0 if there is none."""
    count_row: int
    """The row of the bar count table; 0 if there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class PointerConfig:
    """The key `pointers` of `config.json`. Raises `ModelBroken` on a value out of bounds."""

    bars: tuple[int, ...] = ()
    """Distances k, 1 to 64. The pointer names a token at the same place of the bar k bars ago."""
    followers: tuple[int, ...] = ()
    """Lengths n, 1 to 32. The pointer names the token that followed the last occurrence of the last n tokens."""
    transposed: tuple[int, ...] = ()
    """Distances k, 1 to 64. The pointer names a token of the bar k bars ago, moved along `scale` as far as the bar at
    hand has moved so far."""
    scale: tuple[int, ...] = ()
    """The ids of tokens in the order of a scale, such as the natural notes from low to high; for `transposed`."""
    bar_tokens: tuple[int, ...] = ()
    """The ids of the tokens that close a bar and open the next."""
    part_tokens: tuple[int, ...] = ()
    """The bar tokens that begin a part. The bar count starts again there."""
    advances: tuple[int, ...] = ()
    """How far each token moves the place in the bar, -1,000 to 1,000. Empty without bars and places."""
    start_token: int = -1
    """The token that begins a window wherever it occurs; -1 for none."""
    place_step: int = 1
    """The units of `advances` that share a row of the place table, 1 to 1,000."""
    places: int = 0
    """The number of rows of the place table, at most 256; 0 for none. The last row is also used for unknown places."""
    counts: int = 0
    """The number of rows of the bar count table, at most 64; 0 for none."""
    matches: int = 0
    """The number of rows of each pointer's match length table, at most 32; 0 for none."""

    def __post_init__(self) -> None:
        _check(1 <= self.size <= MAX_POINTERS, "the number of pointers", self.size, f"1 to {MAX_POINTERS}")
        for name, values, allowed in (
            ("bars", self.bars, BAR_DISTANCES),
            ("transposed", self.transposed, BAR_DISTANCES),
            ("followers", self.followers, FOLLOWER_LENGTHS),
        ):
            for value in values:
                _check(value in allowed, name, value, f"{allowed[0]} to {allowed[-1]}")
            _check(len(set(values)) == len(values), name, list(values), "distinct values")
        for name, value, least, most in (
            ("place_step", self.place_step, 1, MAX_PLACE_STEP),
            ("places", self.places, 0, MAX_PLACES),
            ("counts", self.counts, 0, MAX_COUNTS),
            ("matches", self.matches, 0, MAX_MATCHES),
        ):
            _check(least <= value <= most, name, value, f"{least} to {most}")
        for advance in self.advances:
            _check(abs(advance) <= MAX_ADVANCE, "advances", advance, f"-{MAX_ADVANCE} to {MAX_ADVANCE}")
        if self.has_bars:
            _check(bool(self.bar_tokens), "bar_tokens", [], "at least one token where bars matter")
        for name in ("bar_tokens", "part_tokens", "scale"):
            ids = getattr(self, name)
            _check(len(set(ids)) == len(ids), name, list(ids), "distinct ids")
        if self.transposed:
            _check(len(self.scale) > 1, "scale", list(self.scale), "at least two tokens with transposed")
        if both := sorted({*self.scale} & {*self.bar_tokens, self.start_token}):
            _check(False, "scale", both[0], "none of bar_tokens and not start_token")
        if alone := sorted(set(self.part_tokens) - set(self.bar_tokens)):
            _check(False, "part_tokens", alone[0], "one of bar_tokens")
        _check(self.start_token not in self.bar_tokens, "start_token", self.start_token, "none of bar_tokens")

    @property
    def size(self) -> int:
        """K: the number of pointers."""
        return len(self.bars) + len(self.followers) + len(self.transposed)

    @property
    def named(self) -> list[tuple[str, int]]:
        """The kind of each pointer and its distance or length, in the order of the tables."""
        kinds = {"bars": self.bars, "followers": self.followers, "transposed": self.transposed}
        return [(kind, value) for kind, values in kinds.items() for value in values]

    @property
    def has_bars(self) -> bool:
        """Whether any value depends on bars."""
        return bool(self.bars or self.transposed or self.places or self.counts)

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """Raises `ModelBroken` if an id or the number of advances does not fit a vocabulary of that size."""
        for name in ("bar_tokens", "part_tokens", "scale"):
            for token in getattr(self, name):
                _check(0 <= token < vocabulary_size, name, token, f"0 to {vocabulary_size - 1}")
        _check(
            -1 <= self.start_token < vocabulary_size, "start_token", self.start_token, f"-1 to {vocabulary_size - 1}"
        )
        if self.has_bars or self.advances:
            _check(
                len(self.advances) == vocabulary_size,
                "the length of advances",
                len(self.advances),
                f"{vocabulary_size}, one for each token",
            )

    def shapes(self, V: int, E: int, H: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight that pointers add to a model."""
        K = self.size
        shapes: dict[str, tuple[int, ...]] = {"pointers.weight": (K, V + 1, E)}
        if self.matches:
            shapes["pointers.match"] = (K, self.matches, E)
        if self.places:
            shapes["pointers.place"] = (self.places, E)
        if self.counts:
            shapes["pointers.count"] = (self.counts, E)
        shapes["pointers.gate"] = (K, H)
        shapes["pointers.gate_bias"] = (K, max(self.matches, 1))
        return shapes

    @classmethod
    def from_fields(cls, fields: Any) -> PointerConfig:
        """Reads the configuration from a JSON object; raises `ModelBroken` on anything it does not know."""
        if not isinstance(fields, Mapping):
            raise ModelBroken(f"config.json: pointers is {fields!r}; allowed: an object")
        known = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in fields.items():
            if name not in known:
                raise ModelBroken(f"config.json: pointers has the unknown key {name!r}; known are {', '.join(known)}")
            if isinstance(known[name].default, tuple):
                _check(isinstance(value, list | tuple), name, value, "a list of integers")
                for entry in value:
                    _check(type(entry) is int, name, entry, "integers")
                values[name] = tuple(value)
            else:
                _check(type(value) is int, name, value, "an integer")
                values[name] = value
        return cls(**values)

    def place_row(self, place: int | None) -> int:
        """The row of the place table for a place in the bar; None is an unknown place."""
        if not self.places:
            return 0
        last = self.places - 1
        return last if place is None else min(max(place // self.place_step, 0), last)

    def count_row(self, count: int) -> int:
        """The row of the bar count table."""
        return min(count, self.counts - 1) if self.counts else 0


def window_of(config: PointerConfig, transcript: Sequence[int]) -> list[int]:
    """W: the transcript's last 1,024 tokens, the pending one last. A start token among them begins W."""
    window = list(transcript[-WINDOW:])
    for i in range(len(window) - 1, -1, -1):
        if window[i] == config.start_token:
            return window[i:]
    return window


def point(config: PointerConfig, vocabulary_size: int, transcript: Sequence[int]) -> Pointed:
    """The definition of pointers: their values at the last token of `transcript`, which must not be empty."""
    W = window_of(config, transcript)
    t = len(W) - 1
    places, completed, count = _walk(config, W)
    # For each pointer, the position before the token that it names.
    found = [_same_place(W, places, completed[-k], t) if len(completed) >= k else None for k in config.bars]
    found += [_last_occurrence(W, n) for n in config.followers]
    tokens = [vocabulary_size if j is None else W[j + 1] for j in found]
    matches = [0 if j is None else _match(config, W, j) for j in found]
    for k in config.transposed:
        token, match = _transposed(config, W, places, completed[-k], t) if len(completed) >= k else (None, 0)
        tokens.append(vocabulary_size if token is None else token)
        matches.append(match)
    return Pointed(tuple(tokens), tuple(matches), config.place_row(places[t]), config.count_row(count))


def _walk(config: PointerConfig, W: Sequence[int]) -> tuple[list[int | None], list[tuple[int, int]], int]:
    """The place of every token of W (None: unknown), the completed bars (opening, close), and the bar count.

    A bar opens at a start token and at every bar token. The tokens before the first of them belong to a bar whose
    opening is not in W. Their places are unknown, and that bar is never complete.
    """
    places: list[int | None] = []
    completed: list[tuple[int, int]] = []
    opening: int | None = None
    count = 0
    for i, token in enumerate(W):
        if token in config.bar_tokens:
            before = places[i - 1] if i else 0
            if opening is not None and (before is None or before > 0):
                completed.append((opening, i))
                count += 1
            if token in config.part_tokens:
                count = 0
            opening = i
            places.append(0)
        elif token == config.start_token:
            opening = i
            places.append(0)
        elif opening is None or i - opening >= BAR_TOKENS:
            places.append(None)
        else:
            before = places[i - 1]
            assert before is not None  # noqa: S101 - every token of a bar within the bound has a place
            places.append(before + (config.advances[token] if config.advances else 0))
    return places, completed, count


def _same_place(W: Sequence[int], places: Sequence[int | None], bar: tuple[int, int], t: int) -> int | None:
    """The position in `bar` at the place of t: the first with the same token as t, else the first, else None."""
    if places[t] is None:
        return None
    candidates = [j for j in range(*bar) if places[j] == places[t]]
    same = [j for j in candidates if W[j] == W[t]]
    return next(iter(same or candidates), None)


def _transposed(
    config: PointerConfig, W: Sequence[int], places: Sequence[int | None], bar: tuple[int, int], t: int
) -> tuple[int | None, int]:
    """The token that the pointer names, None for none, and its match length.

    The pointer stands after j: the first position in `bar` at the place of t whose token agrees with the one at t: both
    are in the scale, or they are equal. Backwards from j and t, tokens agree as long as all pairs in the scale are the
    same number of steps apart. At most 32 pairs are compared. The token after j is moved by that many steps. There is
    none if they are 0 or would lead out of the scale, or if no pair is in the scale.
    """
    step = {token: i for i, token in enumerate(config.scale)}
    if places[t] is None:
        return None, 0
    at_place = [j for j in range(*bar) if places[j] == places[t]]
    j = next((j for j in at_place if W[j] == W[t] or (W[j] in step and W[t] in step)), None)
    if j is None:
        return None, 0
    moved, length = None, 0
    while length < min(j + 1, MAX_TRANSPOSED):
        there, here = W[j - length], W[t - length]
        if there in step and here in step:
            if moved not in (None, step[here] - step[there]):
                break
            moved = step[here] - step[there]
        elif there != here:
            break
        length += 1
    if not moved:
        return None, 0
    named, match = W[j + 1], min(length, max(config.matches - 1, 0))
    if named not in step:
        return named, match
    at = step[named] + moved
    return (config.scale[at], match) if 0 <= at < len(config.scale) else (None, 0)


def _last_occurrence(W: Sequence[int], n: int) -> int | None:
    """The last earlier position in W at which the last n tokens of W end, or None."""
    t = len(W) - 1
    if t + 1 < n:
        return None
    for s in range(t - 1, n - 2, -1):
        if all(W[s - i] == W[t - i] for i in range(n)):
            return s
    return None


def _match(config: PointerConfig, W: Sequence[int], j: int) -> int:
    """The number of equal tokens backwards from j and from the end of W, at most `matches` - 1."""
    t, m = len(W) - 1, 0
    while m < config.matches - 1 and m <= j and W[j - m] == W[t - m]:
        m += 1
    return m


def _check(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ModelBroken(f"config.json: pointers: {key} is {value!r}; allowed: {allowed}")
