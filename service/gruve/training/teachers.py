"""Knowledge distillation (Hinton et al. 2015): a run learns from the distributions of trained models, its teachers.

A corpus shows one next token; a teacher's distribution also shows how likely the others were. Several teachers are
averaged, which is a better model than each of them. Their distributions do not change during a run. So they are
computed once, over each tune from its start, or over a text with the state carried. A teacher may have another
architecture than the network, and other pointers, but must have the same vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gruve.errors import InvalidField, ModelBroken
from gruve.model.repository import Model, load_given
from gruve.training.batches import IGNORED, START_ID, Piece, pad
from gruve.training.config import Teachers
from gruve.training.corpus import Corpus, TextCorpus, vocabulary_difference
from gruve.training.evaluate import CHUNK
from gruve.training.pointing import pointed_batch, pointed_rows

ROWS = 32
"""The tunes, or the parts of a text, that a teacher reads side by side."""
MOST_BYTES = 4 << 30
"""The memory that the distributions may take. They need two bytes for each token of the vocabulary at each token of
the corpus."""


def load_teachers(teachers: Teachers, folders: Sequence[Path], corpus: Corpus) -> list[Model]:
    """The models in `folders`.

    Raises `InvalidField` if they are not those of the config, in its order, or if their distributions would take more
    than `MOST_BYTES`. Raises `ModelBroken` for a model with another vocabulary than the corpus.
    """
    if len(folders) != len(teachers.digests):
        names = f"has {len(teachers.digests)} models; {len(folders)} folders of teachers are given"
        raise InvalidField("teachers.digests", names)
    models = [load_given(folder) for folder in folders]
    for model, folder, digest in zip(models, folders, teachers.digests, strict=True):
        if model.digest != digest:
            raise InvalidField("teachers.digests", f"has {digest!r}; the model in {folder} has {model.digest!r}")
        if model.tokenizer != corpus.tokenizer:
            differs = vocabulary_difference(model.tokenizer, corpus.tokenizer)
            raise ModelBroken(f"the teacher in {folder} has another vocabulary than the corpus: {differs}")
    tokens = len(corpus.train) if isinstance(corpus, TextCorpus) else sum(len(piece.ids) for piece in corpus.train)
    needed = 2 * tokens * corpus.tokenizer.size
    if needed > MOST_BYTES:
        why = f"would need {needed} bytes of memory for the {tokens} tokens of the corpus; at most {MOST_BYTES}"
        raise InvalidField("teachers.digests", why)
    return models


@torch.no_grad()
def taught_tunes(teachers: Sequence[Model], pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The tunes with the teachers' distributions: `taught` (T, V) float16, zero after the end token."""
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids))
    vocabulary = teachers[0].config.vocabulary_size
    taught = [torch.zeros(len(piece.ids), vocabulary) for piece in pieces]
    for teacher in teachers:
        network = teacher.network()
        for first in range(0, len(order), ROWS):
            some = order[first : first + ROWS]
            rows = [dataclasses.replace(pieces[i], pointed=pointed_rows(teacher.config, pieces[i].ids)) for i in some]
            batch = pad(rows)
            logits, _, _ = network(batch.inputs, network.zero_state(len(some)), batch.pointed)
            for i, distributions in zip(some, logits.softmax(dim=-1), strict=True):
                steps = len(pieces[i].ids) - 1
                taught[i][:steps] += distributions[:steps] / len(teachers)
    return tuple(
        dataclasses.replace(piece, taught=distributions.half())
        for piece, distributions in zip(pieces, taught, strict=True)
    )


@torch.no_grad()
def taught_text(teachers: Sequence[Model], ids: Sequence[int]) -> Tensor:
    """(N, V) float16: the teachers' distribution for every token of a text, given those before it.

    The text is cut into `ROWS` equal parts, each starting cold, and what is left at the end.
    """
    taught = torch.zeros(len(ids), teachers[0].config.vocabulary_size, dtype=torch.float16)
    T = len(ids) // ROWS
    for rows, part in ((ROWS, slice(0, ROWS * T)), (1, slice(ROWS * T, len(ids)))):
        targets = torch.tensor(ids[part], dtype=torch.long).view(rows, -1)
        if not targets.numel():
            continue
        inputs = torch.cat((torch.full((rows, 1), START_ID), targets[:, :-1]), dim=1)
        into = taught[part].view(rows, -1, taught.shape[1])
        for teacher in teachers:
            network = teacher.network()
            pointed = pointed_batch(teacher.config, inputs)
            state = network.zero_state(rows)
            for first in range(0, inputs.shape[1], CHUNK):
                chunk = slice(first, first + CHUNK)
                some = None if pointed is None else pointed[:, chunk]
                logits, state, _ = network(inputs[:, chunk], state, some)
                into[:, chunk] += logits.softmax(dim=-1) / len(teachers)
    return taught


def taught_loss(logits: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy a token of logits (B, T, V) against the teachers' distributions, at the scored targets."""
    nats = -(taught * logits.log_softmax(dim=-1)).sum(dim=-1)
    scored = targets != IGNORED
    return (nats * scored).sum() / scored.sum()
