"""The form objective: it gives the tunes that the model composes the form and the melodies of the corpus.

A model that only learned the next token of real tunes is led astray by its own choices when it composes: fewer bars
return, and fewer tunes end on the tonic. So at intervals a run composes tunes, and compares how frequent each form is
among them and in the corpus. The objective is the log-likelihood of the corpus's forms under the model, summed over all
tunes of a form. Its gradient is that of REINFORCE (Williams 1992) with the ratio of the two frequencies as the reward:
a tune becomes likelier if its form is too rare. The same is done for the classes of `melody.py`, because duller
melodies are an easy way to the right form: a low note, repeated often, ends more tunes on the tonic. The steps are
bounded as those of PPO (Schulman et al. 2017): a token counts no more once its probability has moved far enough.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.repository import Model
from gruve.training.auxiliary import CLASSES
from gruve.training.batches import IGNORED, Batch, Piece, TuneBatches
from gruve.training.config import Batches, Form
from gruve.training.form import bars_of, tune_form
from gruve.training.form_report import is_right
from gruve.training.melody import MelodyClasses
from gruve.training.pointing import pointed_rows
from gruve.training.quality import Sample, draw_samples

LONGEST_TOKENS = 500
"""Longer tunes are not learned from, which bounds the memory of a batch."""
LONGEST_RUN = 4
"""A tune that plays a bar more often than this in succession has no form of the corpus."""
SHARES = 8
"""The share of bars that are repeated is compared in steps of 1/8, up to one half."""
GREATEST_RATIO = 4.0
CLIP = 0.2
"""A token's probability moves by about this share before the tunes are composed anew."""
SEEDS = 1_000_000
"""The seeds of one composition are this far from those of the next."""

FormClass = tuple[bool | int | None, ...]
Kind = TypeVar("Kind", bound=Hashable)


class OwnTunes:
    """The tunes that a model composed, in batches with their advantages."""

    def __init__(self, form: Form, train: Iterable[Sequence[str]], seed: int, *, moves: bool = False) -> None:
        """`train` are the tunes of the corpus, as tokens; `seed` orders the batches; `moves`: see `form_class`."""
        self._form, self._seed, self._moves = form, seed, moves
        tunes = list(train)
        self._wanted = Counter(form_class(tokens, moves=moves) for tokens in tunes)
        self._melodies = MelodyClasses(tunes)
        self._pieces: tuple[Piece, ...] = ()
        self._batches: TuneBatches | None = None

    def compose(self, model: Model, number: int) -> None:
        """Composes the tunes of the run's composition `number`, from 0. Raises `ModelBroken` if too few of them end."""
        composed = self._form.composed
        samples = draw_samples(model, composed, seed=SEEDS * (number + 1), with_nats=True)
        start, end = model.tokenizer.start_id, model.tokenizer.end_id or 0
        vocabulary = model.tokenizer.vocabulary
        tunes = [[vocabulary[i] for i in sample.ids] for sample in samples]
        forms = [class_of(sample, tokens, moves=self._moves) for sample, tokens in zip(samples, tunes, strict=True)]
        melodies = [
            None if form is None else self._melodies.class_of(tokens) for form, tokens in zip(forms, tunes, strict=True)
        ]
        of_form, of_melody = advantages(forms, self._wanted), advantages(melodies, self._melodies.wanted)
        pieces = [
            _piece(model.config, (start, *sample.ids, end), first + second, sample.nats)
            for sample, first, second in zip(samples, of_form, of_melody, strict=True)
            if sample.ended and len(sample.ids) <= LONGEST_TOKENS
        ]
        if len(pieces) < self._form.rows:
            raise ModelBroken(
                f"{len(pieces)} of {composed} composed tunes end within {LONGEST_TOKENS} tokens; a batch of the form "
                f"objective needs {self._form.rows}: begin with a trained model"
            )
        self._fill(tuple(pieces))

    def next(self) -> Batch:
        """The next batch, with advantages."""
        assert self._batches is not None, "compose comes first"  # noqa: S101 - how the trainer calls it
        return self._batches.next()

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        if self._batches is None:
            return {}
        return self._batches.state() | {
            "ids": torch.tensor([i for piece in self._pieces for i in piece.ids], dtype=torch.int32),
            "lengths": torch.tensor([len(piece.ids) for piece in self._pieces]),
            "advantages": torch.tensor([piece.advantage for piece in self._pieces], dtype=torch.float64),
            "nats": torch.tensor([nats for piece in self._pieces for nats in piece.nats], dtype=torch.float64),
        }

    def restore(self, model: ModelConfig, state: Mapping[str, Tensor]) -> None:
        """Returns to the tunes and the place in them at which `state` was called."""
        lengths = state["lengths"]
        ids = torch.split(state["ids"], lengths.tolist())
        nats = torch.split(state["nats"], (lengths - 1).tolist())
        values = zip(ids, state["advantages"].tolist(), nats, strict=True)
        self._fill(tuple(_piece(model, tuple(i.tolist()), value, tuple(n.tolist())) for i, value, n in values))
        assert self._batches is not None  # noqa: S101 - just made
        self._batches.restore(dict(state))

    def _fill(self, pieces: tuple[Piece, ...]) -> None:
        self._pieces = pieces
        self._batches = TuneBatches(pieces, Batches(self._form.rows, joined_share=0.0), self._seed)


def class_of(sample: Sample, tokens: Sequence[str], *, moves: bool = False) -> FormClass | None:
    """The form of a composed tune; None if it did not end, has a wrong bar, or repeats one bar too often in a row."""
    if not sample.ended or _longest_run(bars_of(tokens)) > LONGEST_RUN or not is_right(sample.text):
        return None
    return form_class(tokens, moves=moves)


def form_class(tokens: Sequence[str], *, moves: bool = False) -> FormClass:
    """What of a tune's form is compared with the corpus: the figures of `form.py`, the share of repeats in steps.

    With `moves`, also whether a bar moves an earlier one along the scale, which a model without transposed pointers can
    hardly do.
    """
    form = tune_form(tokens)
    eighths = min(1 + SHARES * form.repeated // form.bars, 1 + SHARES // 2) if form.repeated else 0
    compared = eighths, form.bar_5_is_bar_1, form.half_cadences_equal, form.parts_of_8_bars, form.ends_on_tonic
    return (*compared, form.moved > 0) if moves else compared


def advantages(classes: Sequence[Kind | None], wanted: Counter[Kind]) -> list[float]:
    """For each composed tune, how much more frequent its class is in the corpus than among those composed.

    It is the ratio of the two frequencies, divided by the mean ratio, less 1: at least -1, and 0 in the mean. The ratio
    is at most `GREATEST_RATIO`, and 0 for a tune without a class. Every class's count is raised by 0.5.
    """
    found = Counter(kind for kind in classes if kind is not None)
    total = wanted.total() + 0.5 * len(wanted)

    def ratio(kind: Kind | None) -> float:
        if kind is None:
            return 0.0
        return min(GREATEST_RATIO, (wanted[kind] + 0.5) / total / ((found[kind] + 0.5) / len(classes)))

    ratios = [ratio(kind) for kind in classes]
    mean = sum(ratios) / max(len(ratios), 1)
    return [each / mean - 1 if mean else 0.0 for each in ratios]


def form_loss(logits: Tensor, batch: Batch) -> Tensor:
    """PPO's clipped loss a token (equation 7), with the advantages less the batch's mean. Takes logits (B, T, V)."""
    assert batch.advantages is not None, "a batch of OwnTunes"  # noqa: S101 - how the trainer calls it
    assert batch.nats is not None, "a batch of OwnTunes"  # noqa: S101 - how the trainer calls it
    nats = cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none")
    scored = batch.targets != IGNORED
    ratio = torch.exp((batch.nats - nats) * scored)
    advantages = (batch.advantages - batch.advantages.mean())[:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    return -(gain * scored).sum() / scored.sum()


def _piece(model: ModelConfig, ids: tuple[int, ...], advantage: float, nats: tuple[float, ...]) -> Piece:
    none = (IGNORED,) * len(CLASSES)
    return Piece(ids, (none,) * len(ids), (0,) * len(ids), pointed_rows(model, ids), advantage, nats)


def _longest_run(bars: Iterable[tuple[str, ...]]) -> int:
    """The most equal bars in succession; 0 if there is none."""
    return max((len(list(same)) for _, same in itertools.groupby(bars)), default=0)
