"""The pointers of a model in training: builds its `PointerConfig` and computes the pointers of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from gruve.errors import InvalidField
from gruve.model.config import ModelConfig
from gruve.model.pointer_tracker import point_all
from gruve.model.pointers import PointerConfig
from gruve.model.tokenizer import Tokenizer
from gruve.training.config import Pointers
from gruve.training.melody import natural_step
from gruve.tune.score import Meter, default_into
from gruve.tune.tokens import BAR_TEXT, PART_STARTS, is_header

UNIT = 24
"""How far a note of one unit length moves the place in a bar. It is divisible by the usual divisors of a unit."""
PLACE_STEP = 6
PLACES = 128
COUNTS = 32


def pointer_config(pointers: Pointers, tokenizer: Tokenizer) -> PointerConfig:
    """The pointers for a tokenizer's vocabulary.

    Raises `InvalidField` if bars are requested without a tokenizer of tunes.
    """
    followers, start = tuple(pointers.followers), tokenizer.start_id
    if tokenizer.kind != "abc":
        for name, values in (("bars", pointers.bars), ("transposed", pointers.transposed)):
            if values:
                raise InvalidField(f"pointers.{name}", f"is {values}; allowed: none with kind {tokenizer.kind!r}")
        return PointerConfig(followers=followers, matches=pointers.matches, start_token=start)
    vocabulary = tokenizer.vocabulary
    lines = {BAR_TEXT[kind] for kind in PART_STARTS}
    return PointerConfig(
        bars=tuple(pointers.bars),
        followers=followers,
        transposed=tuple(pointers.transposed),
        scale=scale_of(vocabulary) if pointers.transposed else (),
        # A header line also counts as one, so that the tune's first bar opens after the headers.
        bar_tokens=tuple(i for i, token in enumerate(vocabulary) if token in BAR_TEXT.values() or is_header(token)),
        part_tokens=tuple(i for i, token in enumerate(vocabulary) if token in lines),
        advances=tuple(0 if token in vocabulary[:2] else advance_of(token) for token in vocabulary),
        start_token=start,
        place_step=PLACE_STEP,
        places=PLACES,
        counts=COUNTS,
        matches=pointers.matches,
    )


def advance_of(token: str) -> int:
    """How far an ABC token moves the place in its bar, in 24ths of the unit length.

    A note or a rest moves it by one unit. The length after it moves it by the difference to one unit, and a tuplet sign
    back by what its notes will be too long. Dotted pairs keep their sum. Other tokens do not move it.
    """
    if is_header(token) or token in BAR_TEXT.values() or token in {"<", ">", "-"}:
        return 0
    if token[0] == "(":
        notes, *more = (int(number) for number in token[1:].split(":"))
        into, count = more or (default_into(notes, Meter(4, 4)), notes)
        return int(UNIT * (Fraction(into * count, notes) - count))
    if token[0].isdigit() or token[0] == "/":
        above, _, below = token.partition("/")
        return int(UNIT * (Fraction(int(above or 1), int(below or 1)) - 1))
    return UNIT


def scale_of(vocabulary: Sequence[str]) -> tuple[int, ...]:
    """The ids of the notes without an accidental, from low to high: the longest row of them without a gap."""
    ids: dict[int, int] = {}
    for i, token in enumerate(vocabulary):
        if (step := natural_step(token)) is not None:
            ids.setdefault(step, i)
    rows: list[list[int]] = [[]]
    for step in sorted(ids):
        if step - 1 not in ids:
            rows.append([])
        rows[-1].append(ids[step])
    longest = max(rows, key=len)
    return tuple(longest)


def pointed_rows(config: ModelConfig, ids: Sequence[int]) -> Tensor | None:
    """(T, 2 K + 2) int32: the pointers at every token of a transcript; None for a model without pointers."""
    if config.pointers is None:
        return None
    return torch.from_numpy(point_all(config.pointers, config.vocabulary_size, ids))


def pointed_batch(config: ModelConfig, inputs: Tensor) -> Tensor | None:
    """(B, T, 2 K + 2) int32: the pointers at `inputs` (B, T), whose rows are transcripts; None without pointers."""
    rows = [row for ids in inputs.tolist() if (row := pointed_rows(config, ids)) is not None]
    return torch.stack(rows) if rows else None
