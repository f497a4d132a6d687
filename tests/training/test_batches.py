"""Batches have the corpus in order, begin cold where they say so, and can be drawn again."""

from __future__ import annotations

import pytest
import torch

from gruve.errors import InvalidField
from gruve.training.auxiliary import CLASSES
from gruve.training.batches import IGNORED, START_ID, Batch, Piece, TextBatches, TuneBatches, pad
from gruve.training.config import Batches

TEXT = [1 + n % 97 for n in range(1_000)]
NONE = (IGNORED,) * len(CLASSES)


def piece(length: int, token: int) -> Piece:
    return Piece((START_ID, *([token] * length), 1), (NONE,) * (length + 2), (0,) * (length + 2))


TUNES = [piece(4 + n % 5, 10 + n) for n in range(40)]


def test_a_warm_row_goes_on_where_it_stopped() -> None:
    source = TextBatches(TEXT, Batches(rows=4, steps=16, cold_share=0.0), seed=1)
    before, after = source.next(), source.next()
    assert not after.cold.any()
    assert torch.equal(after.inputs[:, 0], before.targets[:, -1])


def test_inputs_are_the_targets_one_step_late() -> None:
    batch = TextBatches(TEXT, Batches(rows=4, steps=16), seed=1).next()
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_a_cold_row_begins_with_the_start_token() -> None:
    batch = TextBatches(TEXT, Batches(rows=64, steps=4, cold_share=0.5), seed=1)
    batch.next()
    second = batch.next()
    assert 10 < int(second.cold.sum()) < 54
    assert torch.equal(second.inputs[:, 0] == START_ID, second.cold)


def test_readers_see_every_character_of_the_text() -> None:
    source = TextBatches(list(range(1_000)), Batches(rows=4, steps=16), seed=1)
    seen = {int(token) for _ in range(80) for token in source.next().targets.flatten()}
    assert len(seen) > 975  # what does not fill the last chunk waits for another draw of lengths


def test_a_text_shorter_than_a_chunk_is_one_chunk() -> None:
    assert TextBatches(TEXT[:5], Batches(rows=2, steps=100), seed=1).next().targets.tolist() == [TEXT[:5]] * 2


def test_an_epoch_holds_no_tune_twice_and_nearly_all_of_them() -> None:
    source = TuneBatches(TUNES, Batches(rows=4, joined_share=0.0), seed=1)
    tokens = [int(row[1]) for _ in range(10) for row in source.next().inputs]
    assert sorted(tokens) == list(range(10, 50))


def test_tunes_of_like_length_share_a_batch() -> None:
    source = TuneBatches(TUNES, Batches(rows=8, joined_share=0.0), seed=1)
    batches = [source.next() for _ in range(5)]
    padding = sum(int((b.targets == IGNORED).sum()) for b in batches)
    assert padding == 0  # five lengths, eight tunes of each


def test_neither_padding_nor_a_start_token_is_scored() -> None:
    batch = pad([TUNES[0].joined(TUNES[1]), piece(3, 7)])
    assert batch.targets[0].tolist() == [10] * 4 + [1, IGNORED] + [11] * 5 + [1]
    assert batch.targets[1].tolist() == [7, 7, 7, 1] + [IGNORED] * 8


def test_a_joined_row_feeds_the_end_and_then_the_start() -> None:
    source = TuneBatches(TUNES, Batches(rows=4, joined_share=1.0), seed=1)
    inputs = source.next().inputs[0].tolist()
    assert inputs.count(START_ID) == 2
    assert inputs[inputs.index(1) + 1] == START_ID


def test_a_restored_source_draws_the_same_batches() -> None:
    for make in (
        lambda: TextBatches(TEXT, Batches(rows=4, steps=16, cold_share=0.3), seed=5),
        lambda: TuneBatches(TUNES, Batches(rows=4, joined_share=0.3), seed=5),
    ):
        one, other = make(), make()
        for _ in range(13):
            one.next()
        other.restore(one.state())
        for _ in range(13):
            same(one.next(), other.next())


def same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.targets, other.targets)
    assert torch.equal(one.cold, other.cold)


def test_tunes_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(InvalidField, match="is 50; the 40 tunes of the training part make 40 rows"):
        TuneBatches(TUNES, Batches(rows=50, joined_share=0.0), seed=1)
