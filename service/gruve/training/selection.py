"""Selects tunes that the initial model composed, so that together they have the form of the corpus.

A model that only learned the next token of real tunes composes alone, and there its own choices lead it astray: fewer
bars return, and fewer tunes end on the tonic. So it composes many tunes, those with the corpus's form are selected, and
the run learns from them beside the corpus (Gulcehre et al. 2023, "Reinforced Self-Training for Language Modeling").
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from gruve.model.repository import Model
from gruve.training.form import PART_BARS, bars_of, ends_on_tonic, parts_of
from gruve.training.form_report import is_right
from gruve.training.quality import draw_samples

LONGEST_RUN = 4
"""No bar of a selected tune is played more often than this in succession."""
SHARES = 8
"""The share of bars that are repeated is compared in steps of 1/8, up to one half."""

Cell = tuple[str | bool | int | None, ...]


def select_tunes(model: Model, train: Sequence[Sequence[str]], composed: int) -> list[list[str]]:
    """Returns some of `composed` tunes that `model` composes at temperature 1 with the seeds from 0, as tokens.

    Of each form, they are as many as in `train`, or all that there are. Each is whole, has no wrong bar, and is
    distinct from the others and from those of `train`. `composed` of 0 selects none.
    """
    wanted = Counter(map(form_cell, train))
    seen = {tuple(tokens) for tokens in train}
    selected = []
    for sample in draw_samples(model, composed):
        tokens = [model.tokenizer.vocabulary[i] for i in sample.ids]
        whole = sample.ended and model.tokenizer.start_id not in sample.ids
        if not whole or tuple(tokens) in seen or not wanted[cell := form_cell(tokens)]:
            continue
        if _longest_run(bars_of(tokens)) <= LONGEST_RUN and is_right(sample.text):
            wanted[cell] -= 1
            seen.add(tuple(tokens))
            selected.append(tokens)
    return selected


def form_cell(tokens: Sequence[str]) -> Cell:
    """What is compared with the corpus: a tune's meter, and the figures of `form.py` for one tune."""
    bars = bars_of(tokens)
    repeated = sum(bar in bars[:n] for n, bar in enumerate(bars))
    meter = next((token for token in tokens if token.startswith("M:")), "")
    return (
        meter,
        min(1 + SHARES * repeated // len(bars), 1 + SHARES // 2) if repeated else 0,
        bars[4] == bars[0] if len(bars) >= 8 else None,
        bars[14] == bars[6] if len(bars) >= 16 else None,
        set(parts_of(tokens)) == {PART_BARS},
        ends_on_tonic(tokens),
    )


def _longest_run(bars: Iterable[tuple[str, ...]]) -> int:
    """The most equal bars in succession; 0 if there is none."""
    return max((len(list(same)) for _, same in itertools.groupby(bars)), default=0)
