"""The reference backend: its bits do not depend on other rows, timing or slots, and its results match the oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone, row_of
from engines import engine_of, random_schedule
from gruve.decode import RowStatus
from gruve.decode.reference import ReferenceBackend, reference_bytes
from gruve.decode.stops import compile_stops
from gruve.errors import ModelBroken
from gruve.model.oracle import Oracle
from gruve.model.sampling import draw
from nets import CELL_NAMES, CELLS, config_of, configs, model_of, pointers_of

cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)


@cells
@pytest.mark.parametrize(("H", "L"), [(17, 2), (32, 3)])
def test_the_rows_beside_a_sequence_change_no_bit_of_it(cell, H, L):
    model = model_of(config_of(cell, H=H, L=L, tied=L == 3))
    random_schedule(H, lambda: ReferenceBackend(model, slots=23), 13, end_id=1, sequences=12)


@pytest.mark.slow
@settings(max_examples=60)
@given(configs(), st.integers(0, 2**32))
def test_the_rows_beside_a_sequence_change_no_bit_of_it_for_long(config, seed):
    model = model_of(config)
    random_schedule(seed, lambda: ReferenceBackend(model, slots=5 + seed % 90), config.vocabulary_size, end_id=1)


@settings(max_examples=15)
@given(configs(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32))
def test_the_number_of_steps_a_call_changes_no_bit(config, steps, seed):
    model = model_of(config)
    admission = admission_of([1, 2, 1, 2], max_tokens=12, seed=seed, repetition_penalty=1.2)
    tokens, states, reason = alone(ReferenceBackend(model, slots=1), admission, end_id=1)
    backend = ReferenceBackend(model, slots=3)
    backend.admit(2, row_of(admission, end_id=1), None)
    got, ended, turn = [], RowStatus.RUNNING, 0
    while ended is RowStatus.RUNNING:
        block = backend.decode([2], [100], steps[turn % len(steps)])
        got += block.tokens[: block.steps_taken[0], 0].tolist()
        ended, turn = RowStatus(int(block.statuses[0])), turn + 1
    assert (got, ended.name) == (tokens, reason.name)
    assert backend.snapshot(2).tobytes() == states[-1].tobytes()


@cells
def test_a_row_takes_no_more_steps_than_its_limit_while_others_continue(cell):
    model = model_of(config_of(cell))
    ones, others = admission_of([1, 2, 3], max_tokens=20, seed=1), admission_of(max_tokens=20, seed=2)
    backend = ReferenceBackend(model, slots=2)
    backend.admit(0, row_of(ones), None)
    backend.admit(1, row_of(others), None)
    got = [[], []]
    for limits in ([2, 5], [4, 1], [3, 6]):
        block = backend.decode([0, 1], limits, 6)
        assert block.steps_taken.tolist() == limits
        for i, limit in enumerate(limits):
            got[i] += block.tokens[:limit, i].tolist()
            assert (block.tokens[limit:, i] == -1).all()
    for i, admission in enumerate((ones, others)):
        tokens, states, _ = alone(ReferenceBackend(model, slots=1), admission)
        assert got[i] == tokens[: len(got[i])]
        assert backend.snapshot(i).tobytes() == states[len(got[i])].tobytes()


@cells
def test_logits_stay_within_a_ten_thousandth_of_the_oracle_over_a_thousand_forced_tokens(cell):
    model = model_of(config_of(cell, V=20, E=12, H=24, L=3))
    forced = np.random.default_rng(5).integers(0, 20, 1_000).astype(np.int32)
    oracle = Oracle(model.config, model.weights)
    expected = oracle.run([0, *forced[:-1]])
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    backend = ReferenceBackend(model, slots=1)
    backend.admit(0, row_of(admission_of(forced, max_tokens=0, logprobs=20)), None)
    block = backend.decode([0], [1_000], 1_000)
    got = np.empty((1_000, 20))
    np.put_along_axis(got, block.logprobs.top_ids[:, 0], block.logprobs.top[:, 0].astype(np.float64), axis=1)
    assert np.abs(got - expected).max() < 1e-4
    assert np.array_equal(block.tokens[:, 0], forced)
    state = np.stack([oracle.h, oracle.c] if cell[0] == "lstm" else [oracle.h])
    assert np.abs(backend.snapshot(0) - state).max() < 1e-4


@cells
def test_greedy_tokens_are_the_oracles_unless_its_two_likeliest_are_too_close(cell):
    model = model_of(config_of(cell, H=16, L=2))
    tokens, _, _ = alone(ReferenceBackend(model, slots=1), admission_of([5], max_tokens=60, temperature=0.0))
    logits = Oracle(model.config, model.weights).run([0, *tokens[:-1]])
    highest = np.sort(logits, axis=1)[:, -2:]
    sure = (highest[:, 1] - highest[:, 0] > 2e-4)[1:]
    assert sure.sum() > 30
    assert np.array_equal(np.array(tokens[1:])[sure], logits.argmax(axis=1)[1:][sure])


def test_a_vocabulary_too_large_for_an_input_table_gives_the_same_tokens(monkeypatch):
    model = model_of(config_of(CELLS[0], H=16))
    admission = admission_of([3], max_tokens=30)
    tokens, _, _ = alone(ReferenceBackend(model, slots=1), admission)
    monkeypatch.setattr("gruve.decode.tiles.MAX_TABLE_ENTRIES", 0)
    plain = ReferenceBackend(model, slots=1)
    assert plain._tiles.input_table is None
    assert alone(plain, admission)[0] == tokens


def test_the_pending_token_is_consumed_first_when_a_sequence_is_continued():
    model = model_of(config_of(CELLS[0]))
    admission = admission_of([4, 5], max_tokens=20)
    tokens, states, _ = alone(ReferenceBackend(model, slots=1), admission)
    backend = ReferenceBackend(model, slots=2)
    backend.admit(1, row_of(_continued(admission, [0, *tokens[:9]], drawn=7)), states[9])
    block = backend.decode([1], [50], 50)
    assert block.tokens[: block.steps_taken[0], 0].tolist() == tokens[9:]
    assert backend.snapshot(1).tobytes() == states[-1].tobytes()


def _continued(admission, transcript, drawn):
    history, nothing = np.array(transcript, dtype=np.int32), np.empty(0, dtype=np.int32)
    return dataclasses.replace(admission, history=history, position=len(history) - 1, forced=nothing, generated=drawn)


@pytest.mark.parametrize("position", [3, 1_023, 1_025, 2_100])
def test_the_penalty_window_crosses_the_edge_of_the_ring_and_has_no_token_of_an_earlier_row(position):
    model = model_of(config_of(CELLS[3], H=8, L=1))
    backend = ReferenceBackend(model, slots=1)
    alone(backend, admission_of([7] * 1_100, max_tokens=1))
    transcript = np.random.default_rng(1).integers(2, 6, position).astype(np.int32)
    admission = admission_of(transcript, max_tokens=5, repetition_penalty=2.0, repetition_window=1_024, temperature=0.0)
    backend.admit(0, row_of(admission), None)
    block = backend.decode([0], [position + 5], position + 5)
    oracle, history = Oracle(model.config, model.weights), [0, *transcript]
    logits = oracle.run(history)[-1]
    for token in block.tokens[position:, 0].tolist():
        assert token == draw(
            logits.astype(np.float32), admission.sampling, position=len(history), history=np.array(history)
        )
        logits = oracle.step(token)
        history.append(token)


def test_a_stop_freezes_the_row_on_the_token_that_completes_it():
    model = model_of(config_of(CELLS[0], V=5))
    free, states, _ = alone(ReferenceBackend(model, slots=1), admission_of(max_tokens=60))
    texts = model.tokenizer.texts
    text = "".join(texts[t] for t in free)
    stop = text[10:13]
    end = text.index(stop) + len(stop)
    stops = compile_stops((stop,), (), texts)
    tokens, stopped, reason = alone(ReferenceBackend(model, slots=1), admission_of(max_tokens=60, stops=stops))
    assert reason.name == "STOP"
    assert "".join(texts[t] for t in tokens) == text[:end]
    assert stopped[-1].tobytes() == states[len(tokens)].tobytes()


@pytest.mark.parametrize("min_tokens", [0, 1, 6])
def test_no_row_ends_before_min_tokens_and_ignore_eos_masks_the_end_token(min_tokens):
    model = model_of(config_of(CELLS[0], V=3))
    for seed in range(10):
        admission = admission_of(max_tokens=12, min_tokens=min_tokens, seed=seed)
        tokens, _, reason = alone(ReferenceBackend(model, slots=1), admission, end_id=1)
        assert len(tokens) >= min_tokens
        assert (tokens.index(1) + 1 if 1 in tokens else 12) == len(tokens)
        assert reason.name == ("END_OF_SEQUENCE" if tokens[-1] == 1 else "LENGTH")
        forever = admission_of(max_tokens=12, ignore_eos=True, seed=seed)
        assert 1 not in alone(ReferenceBackend(model, slots=1), forever, end_id=1)[0]


def test_log_probabilities_are_of_the_unmodified_distribution_and_of_forced_tokens_too():
    model = model_of(config_of(CELLS[0]))
    with engine_of(ReferenceBackend(model, slots=2)) as (engine, recorder):
        admission = admission_of([3, 4], max_tokens=8, temperature=0.3, top_k=2, logprobs=3)
        recorder.wait_for_end(engine.admit(admission_of([1], max_tokens=30)))
        recorder.wait_for_end(sequence := engine.admit(admission))
    logits = Oracle(model.config, model.weights).run([0, *recorder.tokens[sequence][:-1]])
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token, entry, row in zip(recorder.tokens[sequence], recorder.logprobs[sequence], expected, strict=True):
        assert abs(entry.logprob - row[token]) < 1e-4
        assert [i for i, _ in entry.alternatives] == np.argsort(-row, kind="stable")[:3].tolist()
    assert recorder.logprobs[1] == []


def test_more_alternatives_than_tokens_give_every_token_once():
    model = model_of(config_of(CELLS[0], V=4))
    with engine_of(ReferenceBackend(model, slots=2)) as (engine, recorder):
        recorder.wait_for_end(sequence := engine.admit(admission_of(max_tokens=2, logprobs=20)))
    assert all(sorted(i for i, _ in e.alternatives) == [0, 1, 2, 3] for e in recorder.logprobs[sequence])


def test_a_library_whose_results_depend_on_the_place_of_a_row_is_refused(monkeypatch):
    monkeypatch.setattr("gruve.decode.tiles.linear", lambda x, W, b=None: x @ W.T + x[:1].sum())
    with pytest.raises(ModelBroken, match="cannot be exact here"):
        ReferenceBackend(model_of(config_of(CELLS[0])), slots=1)


def test_the_numerics_depend_on_the_number_of_threads():
    model = model_of(config_of(CELLS[0]))
    one = ReferenceBackend(model, slots=1).numerics_id
    assert ReferenceBackend(model, slots=9).numerics_id == one
    torch.set_num_threads(2)
    try:
        assert ReferenceBackend(model, slots=1).numerics_id != one
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("H", [8, 9, 11, 13, 15, 17, 31, 33])
def test_a_width_that_is_no_multiple_of_a_vector_register_is_served_exactly(H):
    for cell in CELLS:
        ReferenceBackend(model_of(config_of(cell, V=3, E=5, H=H, tied=H % 2 == 0)), slots=1)


def test_a_state_of_nans_changes_nothing_of_the_next_row_in_its_slot():
    model = model_of(config_of(CELLS[0], H=17))
    backend, nan = ReferenceBackend(model, slots=1), np.full((1, 2, 17), np.nan, dtype=np.float32)
    alone(backend, dataclasses.replace(admission_of([1, 2], max_tokens=0), state=nan))
    admission = dataclasses.replace(admission_of(max_tokens=5), state=np.full((1, 2, 17), 0.5, dtype=np.float32))
    assert alone(backend, admission)[0] == alone(ReferenceBackend(model, slots=1), admission)[0]


def test_an_empty_slot_is_not_decoded():
    with pytest.raises(ValueError, match="slot 0 holds no sequence"):
        ReferenceBackend(model_of(config_of(CELLS[0])), slots=1).decode([0], [1], 1)


@cells
@pytest.mark.parametrize("arithmetic", ["float32", "int8"])
def test_the_size_of_a_backend_is_known_before_it_is_made(cell, arithmetic):
    for more in ({"pointers": pointers_of(99)}, {"tied": True}, {"tied": True, "E": 16, "L": 1}, {"V": 99, "H": 64}):
        model = model_of(config_of(cell, **{"V": 99, "E": 6, "H": 16, **more}))
        backend = ReferenceBackend(model, 8, arithmetic=arithmetic)
        own = {weight.data_ptr() for weight in model.weights.values()}
        held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors_in(backend)}
        found = sum(size for address, size in held.items() if address not in own)
        expected = reference_bytes(model.config, 8, arithmetic)
        assert abs(found - expected) <= 0.02 * expected


def tensors_in(thing) -> list[torch.Tensor]:
    """The tensors that an object of this package holds, and those that its own objects, lists and dictionaries hold."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_in(part)]
    held = vars(thing).values() if type(thing).__module__.startswith("gruve.decode") else ()
    return [tensor for part in held for tensor in tensors_in(part)]
