"""What never follows: counted in the training part of a corpus, and held against a network that would write it.

Where a bar is full no note follows in any tune; after a length no second length; in a first ending no end of the part.
A network learns this from examples of what does follow, but slowly, and one such token spoils a tune. So the contexts
below are counted, and what never followed one that is frequent is unlikely there. The training loss adds
-log(1 - P(unlikely)), unlikelihood training (Welleck et al. 2020), which the true distribution does not mind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gruve.model.tokenizer import END, START, Tokenizer
from gruve.training.auxiliary import CLASSES, LINES, auxiliary_targets

FREQUENT = 30
"""How often a context must be seen before what never followed it is unlikely."""

Context = tuple[object, ...]


def kind(token: str) -> str:
    """What a token is to the count: every pitch is `note`, every header its field; the others stand for themselves."""
    if token[1:2] == ":" and token[0] in "LMK":
        return token[:2]
    if token.strip() in LINES or token[0] in "(><-/" or token[0].isdigit() or token in {START, END, "z"}:
        return token
    return "note"


def contexts(tokens: Sequence[str]) -> Iterator[tuple[Context, ...]]:
    """For each token and for the end: what is known before it, from four points of view.

    How tokens are put together; how full the bar is; which ending we are in; how a part that began so may end here.
    """
    unit = meter = ""
    last = START
    nothing_yet = (0,) * len(CLASSES)
    for token, answers in zip((START, *tokens), (nothing_yet, *auxiliary_targets(tokens)), strict=True):
        unit = token if token.startswith("L:") else unit
        meter = token if token.startswith("M:") else meter
        last_but_one, last = last, kind(token)
        position, tune_pickup, part_pickup, form, _, notes_left = answers
        yield (
            ("syntax", _broad(last), _broad(last_but_one), notes_left),
            ("bar", meter, unit, last, position, notes_left),
            ("ending", form, _broad(last)),
            ("part", meter, position, tune_pickup, part_pickup, form > 2, _broad(last) == "line", last == "note"),
        )


def _broad(of: str) -> str:
    """A kind with all lengths, and all lines, as one."""
    if of.strip() in LINES:
        return "line"
    return "length" if of[0].isdigit() or of[0] == "/" else of


class UnlikelyTokens:
    """The unlikely tokens of a corpus: rows of a table of masks over the vocabulary, row 0 without any."""

    def __init__(self, tokenizer: Tokenizer, train: Iterable[Sequence[str]]) -> None:
        seen: dict[Context, Counter[str]] = defaultdict(Counter)
        for tokens in train:
            for views, following in zip(contexts(tokens), (*tokens, END), strict=True):
                for view in views:
                    seen[view][kind(following)] += 1
        self._allowed = {view: frozenset(counts) for view, counts in seen.items() if counts.total() >= FREQUENT}
        self._kinds = [kind(token) for token in tokenizer.vocabulary]
        self._rows: dict[frozenset[str] | None, int] = {None: 0}

    def rows(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """For each token and for the end: the row of the table that holds before it."""
        found = []
        for views in contexts(tokens):
            known = [self._allowed[view] for view in views if view in self._allowed]
            allowed = frozenset.intersection(*known) if known else None
            found.append(self._rows.setdefault(allowed, len(self._rows)))
        return tuple(found)

    def table(self) -> Tensor:
        """(rows, V) bool: true where a token is unlikely. The start token, which nothing predicts, never is."""
        table = torch.zeros(len(self._rows), len(self._kinds), dtype=torch.bool)
        for allowed, row in self._rows.items():
            if allowed is not None:
                table[row] = torch.tensor([k not in allowed and k != START for k in self._kinds])
        return table


def unlikelihood_loss(logits: Tensor, unlikely: Tensor, scored: Tensor) -> Tensor:
    """The mean of -log(1 - P(unlikely)) over scored steps: logits (N, V), unlikely (N, V) bool, scored (N,) bool."""
    allowed = torch.logsumexp(logits.masked_fill(unlikely, float("-inf")), dim=1)
    return ((torch.logsumexp(logits, dim=1) - allowed) * scored).sum() / scored.sum()
