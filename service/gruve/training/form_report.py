"""The form of a model's tunes beside the form of its corpus, for `gruve evaluate` and the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gruve.errors import TuneError
from gruve.model.repository import Model
from gruve.training.form import form_of, opening, opening_returns
from gruve.training.quality import Sample, as_abc, copied_runs, draw_samples
from gruve.tune.bars import wrong_bars
from gruve.tune.parse import parse_tune

ROWS = {
    "bars_repeated": "bars that equal an earlier bar of the tune",
    "tunes_with_repeat": "tunes with such a bar",
    "bars_moved": "bars that move one of the two before along the scale",
    "tunes_with_move": "tunes with such a bar",
    "bar_5_is_bar_1": "bar 5 equals bar 1",
    "half_cadences_equal": "bar 15 equals bar 7",
    "parts_of_8_bars": "all parts have 8 bars",
    "ends_on_tonic": "last note is the tonic",
    "notes_repeated": "notes that equal the note before",
    "opening_returns": "given bars 1 to 4 of an unseen tune, one of them returns",
    "all_bars_right": "all bars right",
    "ended": "end reached within 1,024 tokens",
    "distinct": "distinct",
    "copied_runs": "runs of 16 tokens found in the training part",
}
"""The names of the figures in the order of the tables, with their labels."""

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class TuneParts:
    """The parts of a corpus of tunes, as ids of one vocabulary without start and end."""

    vocabulary: Sequence[str]
    train: Sequence[tuple[int, ...]]
    validation: Sequence[tuple[int, ...]]
    test: Sequence[tuple[int, ...]]

    def names(self, ids: Sequence[int]) -> list[str]:
        """The tokens of a tune."""
        return [self.vocabulary[i] for i in ids]

    def openings(self) -> list[list[str]]:
        """The first four bars of every tune of validation and test that has more bars."""
        unseen = (self.names(ids) for ids in (*self.validation, *self.test))
        return [start for tokens in unseen if (start := opening(tokens))]


def corpus_form(parts: TuneParts) -> Figures:
    """The figures of the corpus: of the training part, and of the unseen tunes for the return of their openings."""
    train = [parts.names(ids) for ids in parts.train]
    prompted = [tokens for ids in (*parts.validation, *parts.test) if opening(tokens := parts.names(ids))]
    right = sum(is_right("".join(tokens)) for tokens in train)
    return dataclasses.asdict(form_of(train)) | {
        "tunes": len(train),
        "openings": len(prompted),
        "opening_returns": sum(map(opening_returns, prompted)) / max(len(prompted), 1),
        "all_bars_right": right / max(len(train), 1),
    }


def model_form(model: Model, samples: Sequence[Sample], parts: TuneParts, temperature: float) -> Figures:
    """The figures of a model: of free samples, and of one continuation of every unseen tune's opening."""
    prompts = [model.tokenizer.encode("".join(tokens)) for tokens in parts.openings()]
    continued = draw_samples(model, len(prompts), temperature=temperature, prompts=prompts)
    returning = sum(opening_returns(parts.names(sample.ids)) for sample in continued)
    count = max(len(samples), 1)
    return dataclasses.asdict(form_of(parts.names(sample.ids) for sample in samples)) | {
        "temperature": temperature,
        "tunes": len(samples),
        "openings": len(prompts),
        "opening_returns": returning / max(len(prompts), 1),
        "all_bars_right": sum(is_right(sample.text) for sample in samples) / count,
        "ended": sum(sample.ended for sample in samples) / count,
        "distinct": len({sample.ids for sample in samples}) / count,
        "copied_runs": copied_runs(samples, parts.train)[0],
    }


def form_table(corpus: Figures, models: Sequence[Figures]) -> list[tuple[str, ...]]:
    """The rows of a table: a figure's name, then its value for the corpus and each of `models`; "" if there is none.

    A figure that none of them has, because they were measured before there was such a figure, has no row.
    """
    return [
        (label, *(f"{figures[name]:.1%}" if name in figures else "" for figures in (corpus, *models)))
        for name, label in ROWS.items()
        if any(name in figures for figures in (corpus, *models))
    ]


def is_right(text: str) -> bool:
    """Whether a tune parses and has no wrong bar."""
    try:
        return not wrong_bars(parse_tune(as_abc(text)))
    except TuneError:
        return False
