"""The losses of `evaluate`, compared with the oracle token by token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gruve.errors import InvalidField, UnknownCharacter
from gruve.model.config import ModelConfig
from gruve.model.network import Network
from gruve.model.oracle import Oracle
from gruve.model.repository import Model, load, save
from gruve.model.tokenizer import build
from gruve.training.decoding import decoded_loss
from gruve.training.evaluate import COLD_WINDOW, carried_loss, evaluate_text, evaluate_tunes
from gruve.training.quality import draw_samples
from serving import TINY, Running

TEXT = "abcab" * 140
TUNES = ["L:1/8\nM:2/4\nK:Cmaj\n| CDEF | G4 |]\n", "L:1/8\nM:2/4\nK:Cmaj\n| G4 |]\n"]


def model(tmp_path: Path, kind: str) -> Model:
    tokenizer = build("characters", ["abcd"], has_end=False)
    if kind == "abc":
        words = ["L:1/8\n", "M:2/4\n", "K:Cmaj\n", "| ", "|]\n", "4", *"CDEFG"]
        tokenizer = build("abc", [words], has_end=True)
    torch.manual_seed(3)
    config = ModelConfig("gru", tokenizer.size, embedding_size=4, hidden_size=8, num_layers=2, reset="after")
    return save(tmp_path / "m", config, tokenizer, Network(config).named_weights())


def nats(model: Model, inputs: list[int], targets: list[int]) -> float:
    """The sum of the oracle's losses."""
    logits = Oracle(model.config, model.weights).run(inputs)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -float(sum(log_probabilities[at, token] for at, token in enumerate(targets) if token >= 0))


def test_carried_scores_every_character_in_one_sweep(tmp_path: Path) -> None:
    m = model(tmp_path, "characters")
    ids = m.tokenizer.encode(TEXT)
    report = evaluate_text(m, TEXT, "carried")
    assert report.scored == len(TEXT)
    assert report.nats_per_token == pytest.approx(nats(m, [0, *ids[:-1]], ids) / len(ids), rel=1e-5)
    assert report.bits_per_token == pytest.approx(report.nats_per_token / math.log(2))


def test_cold_begins_every_window_anew_and_gives_its_first_character(tmp_path: Path) -> None:
    m = model(tmp_path, "characters")
    ids = m.tokenizer.encode(TEXT)
    starts = range(0, len(ids) - COLD_WINDOW, COLD_WINDOW)
    windows = [ids[at : at + COLD_WINDOW + 1] for at in starts]
    expected = sum(nats(m, [0, *window[:-1]], [-1, *window[1:]]) for window in windows)
    report = evaluate_text(m, TEXT, "cold")
    assert report.scored == COLD_WINDOW * len(windows) == 2 * COLD_WINDOW
    assert report.nats_per_token == pytest.approx(expected / report.scored, rel=1e-5)


def test_cold_as_nanogpt_feeds_no_start_token(tmp_path: Path) -> None:
    m = model(tmp_path, "characters")
    ids = m.tokenizer.encode(TEXT)
    windows = [ids[at : at + COLD_WINDOW + 1] for at in range(0, len(ids) - COLD_WINDOW, COLD_WINDOW)]
    expected = sum(nats(m, window[:-1], window[1:]) for window in windows)
    report = evaluate_text(m, TEXT, "cold, as nanoGPT")
    assert report.scored == COLD_WINDOW * len(windows)
    assert report.nats_per_token == pytest.approx(expected / report.scored, rel=1e-5)


def test_a_sample_begins_with_its_prompt_and_draws_by_position(tmp_path: Path) -> None:
    m = model(tmp_path, "abc")
    free = draw_samples(m, 3, max_tokens=30)
    prompts = [sample.ids[:at] for at, sample in enumerate(free)]
    assert draw_samples(m, 3, max_tokens=30, prompts=prompts) == free


def test_rows_side_by_side_are_parts_begun_cold(tmp_path: Path) -> None:
    m = model(tmp_path, "characters")
    ids = m.tokenizer.encode(TEXT)
    half = len(ids) // 2
    expected = (carried_loss(m.network(), ids[:half]) + carried_loss(m.network(), ids[half:])) / 2
    assert carried_loss(m.network(), ids, rows=2) == pytest.approx(expected, rel=1e-6)


def test_tunes_score_their_end_and_not_their_start(tmp_path: Path) -> None:
    m = model(tmp_path, "abc")
    encoded = [m.tokenizer.encode(text) for text in TUNES]
    report = evaluate_tunes(m, encoded)
    assert (report.tunes, report.scored) == (2, sum(len(ids) + 1 for ids in encoded))
    assert report.nats == pytest.approx(sum(nats(m, [0, *ids], [*ids, 1]) for ids in encoded), rel=1e-5)
    assert report.nats_per_tune == pytest.approx(report.nats / 2)


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    m = model(tmp_path, "characters")
    with pytest.raises(InvalidField, match="at least 257"):
        evaluate_text(m, "abc", "cold")
    with pytest.raises(UnknownCharacter, match="'x'"):
        evaluate_text(m, "abx", "carried")
    with pytest.raises(InvalidField, match="no end token"):
        evaluate_tunes(m, [[1, 2]])
    with pytest.raises(InvalidField, match="'m' is a model of tunes, not of texts"):
        evaluate_text(model(tmp_path, "abc"), TUNES[0], "carried")


def test_a_sample_depends_on_its_seed_and_not_on_other_samples(tmp_path: Path) -> None:
    m = model(tmp_path, "abc")
    together = draw_samples(m, 6, max_tokens=40)
    assert draw_samples(m, 6, max_tokens=40, rows=2) == together
    assert draw_samples(m, 1, seed=4, max_tokens=40) == [together[4]]


def test_a_sample_stops_at_its_end_or_at_the_limit(tmp_path: Path) -> None:
    for sample in draw_samples(model(tmp_path, "abc"), 20, max_tokens=12):
        assert 1 not in sample.ids
        assert sample.ended or len(sample.ids) == 12


def test_the_loss_of_the_decoding_backend_is_that_of_the_network(tmp_path: Path) -> None:
    m = model(tmp_path, "abc")
    encoded = [m.tokenizer.encode(text) for text in TUNES]
    tunes = [[*ids, 1] for ids in encoded]
    expected = evaluate_tunes(m, encoded).nats_per_token
    assert decoded_loss(m, tunes, "float32") == pytest.approx(expected, rel=1e-5)
    assert decoded_loss(m, tunes, "int8") == pytest.approx(expected, rel=0.01)


def test_samples_are_what_a_server_generates(server: Running) -> None:
    for at, sample in enumerate(draw_samples(load(TINY), 3, seed=5, temperature=0.8, max_tokens=70)):
        generated = server.read(max_tokens=70, sampling={"seed": 5 + at, "temperature": 0.8})
        assert generated.text == sample.text
