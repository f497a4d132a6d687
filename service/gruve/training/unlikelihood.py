"""Tokens that never follow a context in the corpus, and a loss on the probability that a network gives them.

For example, no note follows in a full bar, no second length follows a length, and no end of a part follows inside a
first ending. A network learns this slowly from the tokens that do follow, and one wrong token spoils a tune. So the
contexts below are counted in the training part, and a token that never followed a frequent context is unlikely there.
The training loss adds -log(1 - P(unlikely)), which is unlikelihood training (Welleck et al. 2020). The true
distribution has no such loss.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gruve.model.tokenizer import END, START, Tokenizer
from gruve.training.auxiliary import CLASSES, LINES, auxiliary_targets
from gruve.tune.tokens import is_header

FREQUENT = 30
"""A context must occur this often before tokens that never followed it are unlikely."""

Context = tuple[object, ...]


def kind(token: str) -> str:
    """The kind of a token: every pitch is `note`, every header is its field, every other token is its own kind."""
    if is_header(token):
        return token[:2]
    if token.strip() in LINES or token[0] in "(><-/" or token[0].isdigit() or token in {START, END, "z"}:
        return token
    return "note"


def contexts(tokens: Sequence[str]) -> Iterator[tuple[Context, ...]]:
    """The contexts of each token and of the end, from four points of view.

    They are: how the last tokens are put together; how full the bar is; the current ending; and how a part with this
    beginning may end here.
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
    """The kind with all lengths merged into one, and all bar lines too."""
    if of.strip() in LINES:
        return "line"
    return "length" if of[0].isdigit() or of[0] == "/" else of


class UnlikelyTokens:
    """The unlikely tokens of a corpus: the rows of a table of masks over the vocabulary. Row 0 is empty."""

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
        """The row of the table that applies before each token and before the end."""
        found = []
        for views in contexts(tokens):
            known = [self._allowed[view] for view in views if view in self._allowed]
            allowed = frozenset.intersection(*known) if known else None
            found.append(self._rows.setdefault(allowed, len(self._rows)))
        return tuple(found)

    def table(self) -> Tensor:
        """(rows, V) bool: true for unlikely tokens.

        The start token is never predicted, so it never counts as unlikely.
        """
        table = torch.zeros(len(self._rows), len(self._kinds), dtype=torch.bool)
        for allowed, row in self._rows.items():
            if allowed is not None:
                table[row] = torch.tensor([k not in allowed and k != START for k in self._kinds])
        return table


def unlikelihood_loss(logits: Tensor, unlikely: Tensor, scored: Tensor) -> Tensor:
    """The mean of -log(1 - P(unlikely)) over scored steps.

    Takes logits (N, V), unlikely (N, V) bool, scored (N,) bool.
    """
    allowed = torch.logsumexp(logits.masked_fill(unlikely, float("-inf")), dim=1)
    return ((torch.logsumexp(logits, dim=1) - allowed) * scored).sum() / scored.sum()
