"""Cuts a corpus into batches: chunks of a text whose state is carried on, or whole tunes of similar length.

Each source has a random generator of its own. A batch depends only on the seed and its place in the order, so it can be
drawn again when a run is resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gruve.errors import InvalidField
from gruve.model.pointer_tracker import follower_sources, match_lengths, window_begins
from gruve.model.pointers import PointerConfig
from gruve.training.auxiliary import CLASSES
from gruve.training.config import Batches

IGNORED = -100
"""The target of a step that is not scored: padding, and the start token, which is never predicted."""

START_ID = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Inputs (B, T), their targets, and which rows begin from the zero state."""

    inputs: Tensor
    targets: Tensor
    cold: Tensor
    """(B,) bool."""
    auxiliary: Tensor | None = None
    """(B, T, questions): for tunes, the classes of `auxiliary.py` at each input, or IGNORED."""
    unlikely: Tensor | None = None
    """(B, T): for tunes, the row of the corpus's table of unlikely tokens that applies after each input."""
    pointed: Tensor | None = None
    """(B, T, 2 K + 2): for a model with pointers, their values at each input."""
    advantages: Tensor | None = None
    """(B,): of tunes that the model composed, each one's advantage."""
    nats: Tensor | None = None
    """(B, T): of such tunes, what each target cost when they were composed."""
    taught: Tensor | None = None
    """(B, T, V): of a run with teachers, their distribution for each target."""


class Source(Protocol):
    """An endless sequence of batches whose place can be saved and restored."""

    def next(self) -> Batch:
        """Returns the next batch."""

    def state(self) -> dict[str, Tensor]:
        """Returns what `restore` needs."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Returns to the place at which `state` was called."""


class TextBatches:
    """Batches of a text: `rows` readers walk through it, evenly spread, each carrying its state from batch to batch.

    A reader that reaches the end continues at the front. It then begins from the zero state with the start token, as
    every request to a server does, and so do `cold_share` of the other chunks.
    """

    def __init__(
        self,
        ids: Sequence[int],
        batches: Batches,
        seed: int,
        pointers: PointerConfig | None = None,
        none: int = 0,
        taught: Tensor | None = None,
    ) -> None:
        """`none` is the vocabulary size, which stands for a pointer that names no token.

        `taught` (N, V) has the teachers' distribution for every token.
        """
        self._taught = taught
        self._followers = None if pointers is None else _Followers(pointers, ids, none)
        self._ids = torch.tensor(ids, dtype=torch.long)
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        rows = batches.rows
        first = int(torch.randint(len(ids), (1,), generator=self._generator))
        self._at = (first + torch.arange(rows) * len(ids) // rows) % len(ids)
        self._fresh = torch.ones(rows, dtype=torch.bool)
        self._begins = self._at.clone()  # where each reader last began from the zero state

    def next(self) -> Batch:
        """Returns the next chunk of every reader. Its length is drawn from half to one and a half times `steps`."""
        mean, rows = self._batches.steps, self._batches.rows
        T = int(torch.randint(mean // 2, mean + mean // 2 + 1, (1,), generator=self._generator))
        T = min(T, len(self._ids))
        past_end = self._at + T > len(self._ids)
        self._at[past_end] = 0
        cold = self._fresh | past_end | (torch.rand(rows, generator=self._generator) < self._batches.cold_share)
        span = self._at[:, None] + torch.arange(T)
        targets = self._ids[span]
        inputs = self._ids[(span - 1).clamp(min=0)]
        inputs[cold, 0] = START_ID
        self._begins[cold] = self._at[cold]
        pointed = None if self._followers is None else self._followers.rows(span - 1, self._begins, cold)
        self._at = self._at + T
        self._fresh = torch.zeros_like(cold)
        taught = None if self._taught is None else self._taught[span]
        return Batch(inputs, targets, cold, pointed=pointed, taught=taught)

    def state(self) -> dict[str, Tensor]:
        """Returns the readers' places and the state of the generator."""
        return {
            "at": self._at,
            "begins": self._begins,
            "fresh": self._fresh,
            "generator": self._generator.get_state(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restores the readers' places and the generator."""
        self._at, self._fresh = state["at"].clone(), state["fresh"].clone()
        self._begins = state.get("begins", self._at).clone()  # a checkpoint from before there were pointers has none
        self._generator.set_state(state["generator"])


class _Followers:
    """The pointers of a text's readers. They never name a token before the place at which the reader began."""

    def __init__(self, pointers: PointerConfig, ids: Sequence[int], none: int) -> None:
        tokens = np.asarray(ids, dtype=np.int32)
        begins = window_begins(dataclasses.replace(pointers, start_token=-1), tokens)
        sources = follower_sources(pointers, tokens, begins)
        self._lengths = torch.tensor(pointers.followers)
        self._none = none
        self._tokens = torch.from_numpy(tokens)
        self._sources = torch.from_numpy(sources)
        self._matches = torch.from_numpy(match_lengths(pointers, tokens, sources, begins).astype(np.int8))

    def rows(self, places: Tensor, begins: Tensor, cold: Tensor) -> Tensor:
        """(B, T, 2 K + 2): the pointers at the characters of `places` (B, T), of readers that began at `begins` (B,).

        The first input of a `cold` reader is the start token, at which no pointer names a token.
        """
        sources = self._sources[places.clamp(min=0)].long()
        inside = sources - self._lengths + 1 >= begins[:, None, None]
        inside &= (sources >= 0) & (places >= begins[:, None]).unsqueeze(-1)
        inside[cold, 0] = False
        tokens = self._tokens[(sources + 1).clamp(min=0)].masked_fill(~inside, self._none)
        longest = sources - begins[:, None, None] + 1
        matches = torch.minimum(self._matches[places.clamp(min=0)].long(), longest).masked_fill(~inside, 0)
        rows = torch.cat((tokens, matches, torch.zeros_like(tokens[..., :2])), dim=-1)
        return rows.to(torch.int32)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One tune as it is fed: ids with start and end, and for each its auxiliary targets and row of unlikely tokens."""

    ids: tuple[int, ...]
    auxiliary: tuple[tuple[int, ...], ...]
    unlikely: tuple[int, ...]
    pointed: Tensor | None = dataclasses.field(default=None, compare=False)
    """(T, 2 K + 2): the pointers at each token, for a model with pointers."""
    advantage: float = 0.0
    """Of a tune that the model composed; see `form_objective.py`."""
    nats: tuple[float, ...] = ()
    """Of a tune that the model composed, what each token after the first cost it."""
    taught: Tensor | None = dataclasses.field(default=None, compare=False)
    """(T, V): in a run with teachers, their distribution after each token."""

    def joined(self, other: Piece) -> Piece:
        """This tune followed by another, at whose start token the pointers begin anew."""
        pointed = None
        if self.pointed is not None and other.pointed is not None:
            pointed = torch.cat((self.pointed, other.pointed))
        taught = None
        if self.taught is not None and other.taught is not None:
            taught = torch.cat((self.taught, other.taught))
        auxiliary, unlikely = self.auxiliary + other.auxiliary, self.unlikely + other.unlikely
        return Piece(self.ids + other.ids, auxiliary, unlikely, pointed, taught=taught)


class TuneBatches:
    """Batches of whole tunes from the zero state, shuffled in each epoch and grouped by length.

    `joined_share` of the rows hold two tunes. They train a start token that follows an end token, as it does in a
    continued session. Tunes that do not fill a batch wait for another epoch. Raises `InvalidField` if all tunes of an
    epoch do not fill one batch.
    """

    POOL_BATCHES = 16

    def __init__(self, tunes: Sequence[Piece], batches: Batches, seed: int) -> None:
        self._tunes = tunes
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_state = self._generator.get_state()
        self._plan = self._draw_epoch()
        self._cursor = 0

    def _draw_epoch(self) -> list[list[Piece]]:
        """Draws every batch of one epoch."""
        batches = self._batches
        order = torch.randperm(len(self._tunes), generator=self._generator).tolist()
        pieces = [self._tunes[tune] for tune in order]
        rows: list[Piece] = []
        draws = torch.rand(len(pieces), generator=self._generator, dtype=torch.float64).tolist()
        left = iter(pieces)
        for draw, piece in zip(draws, left, strict=False):
            if draw < batches.joined_share and (second := next(left, None)) is not None:
                piece = piece.joined(second)
            rows.append(piece)
        plan: list[list[Piece]] = []
        pool = batches.rows * self.POOL_BATCHES
        for start in range(0, len(rows), pool):
            near = sorted(rows[start : start + pool], key=lambda piece: len(piece.ids))
            plan += [near[i : i + batches.rows] for i in range(0, len(near) - batches.rows + 1, batches.rows)]
        if not plan:
            made = f"the {len(pieces)} tunes of the training part make {len(rows)} rows"
            raise InvalidField("batches.rows", f"is {batches.rows}; {made}, and a batch must be full")
        shuffled = torch.randperm(len(plan), generator=self._generator).tolist()
        return [plan[i] for i in shuffled]

    def next(self) -> Batch:
        """Returns the next batch of tunes, padded at the end to the longest."""
        if self._cursor == len(self._plan):
            self._begin_epoch()
        pieces = self._plan[self._cursor]
        self._cursor += 1
        return pad(pieces)

    def state(self) -> dict[str, Tensor]:
        """Returns the generator's state at the beginning of the epoch, and the place in the epoch."""
        return {"epoch": self._epoch_state, "cursor": torch.tensor(self._cursor)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Draws the epoch again and goes to its place."""
        self._generator.set_state(state["epoch"])
        self._begin_epoch()
        self._cursor = int(state["cursor"])


def pad(pieces: Sequence[Piece]) -> Batch:
    """Returns one batch of whole pieces from the zero state. Padding and start tokens are not scored."""
    longest = max(len(piece.ids) for piece in pieces)
    ids = torch.full((len(pieces), longest), START_ID, dtype=torch.long)
    auxiliary = torch.full((len(pieces), longest, len(CLASSES)), IGNORED, dtype=torch.long)
    unlikely = torch.zeros_like(ids)
    for row, piece in enumerate(pieces):
        length = len(piece.ids)
        ids[row, :length] = torch.tensor(piece.ids)
        auxiliary[row, :length] = torch.tensor(piece.auxiliary)
        unlikely[row, :length] = torch.tensor(piece.unlikely)
    pointed, taught = _padded([piece.pointed for piece in pieces]), _padded([piece.taught for piece in pieces])
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == START_ID, IGNORED)
    cold = torch.ones(len(pieces), dtype=torch.bool)
    batch = Batch(ids[:, :-1], targets, cold, auxiliary[:, :-1], unlikely[:, :-1], pointed, taught=taught)
    if not pieces[0].nats:
        return batch
    nats = torch.nn.utils.rnn.pad_sequence([torch.tensor(piece.nats) for piece in pieces], batch_first=True)
    return dataclasses.replace(batch, advantages=torch.tensor([piece.advantage for piece in pieces]), nats=nats)


def _padded(rows: Sequence[Tensor | None]) -> Tensor | None:
    """Rows (T, ...) as one tensor (B, T - 1, ...), without the last step; None if the pieces have none."""
    present = [row for row in rows if row is not None]
    return torch.nn.utils.rnn.pad_sequence(present, batch_first=True)[:, :-1] if present else None
