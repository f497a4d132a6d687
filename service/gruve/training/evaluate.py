"""Measures the nats per token of a model, under named protocols, because figures differ between them.

Nats are of the unmodified distribution. The start token is never predicted; the end token of a tune is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gruve.errors import CorpusError, InvalidField, UnknownCharacter
from gruve.model.network import Network
from gruve.model.repository import Model
from gruve.training.auxiliary import CLASSES
from gruve.training.batches import IGNORED, START_ID, Piece, pad
from gruve.training.pointing import pointed_batch, pointed_rows
from gruve.tune.books import Kept
from gruve.tune.tokens import join

CHUNK = 256
"""The steps of one call. It bounds memory and does not change the result."""
COLD_WINDOW = 256
"""The number of scored characters in a cold window, as in nanoGPT's evaluation of its character model."""

Protocol = Literal["carried", "cold", "cold, as nanoGPT"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclasses.dataclass(frozen=True, slots=True)
class TextReport:
    """The loss on a text.

    `carried`: the state is carried from the text's first character to its last, and every character is scored.

    `cold`: the text is covered by windows of 257 characters that overlap by one. Each starts from the zero state with
    the start token; its first character is given, the other 256 are scored.

    `cold, as nanoGPT`: the same windows without the start token, which nanoGPT's model does not have. Its own
    evaluation samples such windows at random.

    Pointers see the same characters as the state.
    """

    protocol: Protocol
    scored: int
    nats_per_token: float

    @property
    def bits_per_token(self) -> float:
        """The same in bits."""
        return self.nats_per_token / math.log(2)


@dataclasses.dataclass(frozen=True, slots=True)
class TunesReport:
    """The loss on whole tunes, each from the zero state. The end token is scored, the start token is not."""

    tunes: int
    scored: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean over all tokens of all tunes."""
        return self.nats / self.scored

    @property
    def nats_per_tune(self) -> float:
        """The mean over tunes."""
        return self.nats / self.tunes

    @property
    def bits_per_token(self) -> float:
        """`nats_per_token` in bits."""
        return self.nats_per_token / math.log(2)


def encode_tunes(model: Model, tunes: Iterable[Kept]) -> list[list[int]]:
    """The ids of each tune, without start and end.

    Raises `InvalidField` for a model of texts, and `CorpusError` that names the first tune with a token that the model
    does not have.
    """
    _end_id(model)
    encoded = []
    for tune in tunes:
        try:
            encoded.append(model.tokenizer.encode(join(tune.tokens)))
        except UnknownCharacter as error:
            raise CorpusError(
                f"X:{tune.source.number} of {tune.source.book} has the token {error.found!r}, "
                f"which is not in the vocabulary of {model.name!r}"
            ) from None
    return encoded


def evaluate_text(model: Model, text: str, protocol: Protocol) -> TextReport:
    """Scores a text.

    Raises `InvalidField` for a model of tunes or if the text is too short, and `UnknownCharacter` if the model has no
    token for it.
    """
    if model.tokenizer.kind != "characters":
        raise InvalidField("model", f"{model.name!r} is a model of tunes, not of texts")
    ids = model.tokenizer.encode(text)
    fewest = 1 if protocol == "carried" else COLD_WINDOW + 1
    if len(ids) < fewest:
        raise InvalidField("text", f"has {len(ids)} tokens; the protocol {protocol!r} needs at least {fewest}")
    if protocol != "carried":
        return cold_loss(model.network(), ids, protocol)
    return TextReport("carried", len(ids), carried_loss(model.network(), ids))


def evaluate_tunes(model: Model, encoded: Iterable[Sequence[int]]) -> TunesReport:
    """Scores whole tunes, as `encode_tunes` returns them. Raises `InvalidField` for a model of texts."""
    end = _end_id(model)
    none = (IGNORED,) * len(CLASSES)
    wholes = [(START_ID, *ids, end) for ids in encoded]
    pieces = [Piece(ids, (none,) * len(ids), (0,) * len(ids), pointed_rows(model.config, ids)) for ids in wholes]
    return tunes_loss(model.network(), pieces)


def _end_id(model: Model) -> int:
    end = model.tokenizer.end_id
    if end is None:
        raise InvalidField("model", f"{model.name!r} has no end token; it is a model of texts, not of tunes")
    return end


@torch.no_grad()
def carried_loss(network: Network, ids: Sequence[int], rows: int = 1) -> float:
    """Nats per token over the whole text, with the state carried from its first character to its last.

    With `rows` above 1 the text is cut into as many equal parts, each starting cold. This is faster and slightly
    pessimistic.
    """
    T = len(ids) // rows
    targets = torch.tensor(ids[: rows * T]).view(rows, T)
    inputs = torch.cat((torch.full((rows, 1), START_ID), targets[:, :-1]), dim=1)
    pointed = pointed_batch(network.config, inputs)
    state, total = network.zero_state(rows), 0.0
    for start in range(0, T, CHUNK):
        some = None if pointed is None else pointed[:, start : start + CHUNK]
        logits, state, _ = network(inputs[:, start : start + CHUNK], state, some)
        total += _summed_nats(logits, targets[:, start : start + CHUNK])
    return total / (rows * T)


@torch.no_grad()
def cold_loss(network: Network, ids: Sequence[int], protocol: Protocol = "cold", rows: int = 64) -> TextReport:
    """The loss of one of the cold protocols, `rows` windows at a time.

    Characters that do not fill a window are left out.
    """
    count = (len(ids) - 1) // COLD_WINDOW
    windows = torch.tensor(ids[: count * COLD_WINDOW + 1]).unfold(0, COLD_WINDOW + 1, COLD_WINDOW)
    if protocol == "cold":
        inputs = torch.cat((torch.full((count, 1), START_ID), windows[:, :-1]), dim=1)
        targets = windows.clone()
        targets[:, 0] = IGNORED
    else:
        inputs, targets = windows[:, :-1], windows[:, 1:]
    pointed = pointed_batch(network.config, inputs)
    total = 0.0
    for start in range(0, count, rows):
        some = inputs[start : start + rows]
        seen = None if pointed is None else pointed[start : start + rows]
        logits, _, _ = network(some, network.zero_state(len(some)), seen)
        total += _summed_nats(logits, targets[start : start + rows])
    return TextReport(protocol, count * COLD_WINDOW, total / (count * COLD_WINDOW))


@torch.no_grad()
def tunes_loss(network: Network, pieces: Sequence[Piece], rows: int = 32) -> TunesReport:
    """Scores whole tunes, grouped by length."""
    total, scored = 0.0, 0
    ordered = sorted(pieces, key=lambda piece: len(piece.ids))
    for start in range(0, len(ordered), rows):
        batch = pad(ordered[start : start + rows])
        logits, _, _ = network(batch.inputs, network.zero_state(len(batch.inputs)), batch.pointed)
        total += _summed_nats(logits, batch.targets)
        scored += int((batch.targets != IGNORED).sum())
    return TunesReport(len(pieces), scored, total)


def _summed_nats(logits: Tensor, targets: Tensor) -> float:
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return float(loss.double().sum())
