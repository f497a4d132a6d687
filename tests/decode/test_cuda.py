"""The GPU backend's bookkeeping, run on the CPU with the same code: slots, calls, captured graphs, calls in flight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone, row_of
from devices import SMALL, LateDevice, torch_backend
from engines import random_schedule
from gruve.decode import RowStatus
from gruve.decode.cuda.device import CpuDevice
from gruve.decode.cuda.pool import StopPool
from gruve.decode.reference import ReferenceBackend
from gruve.decode.stops import compile_stops
from gruve.model.sampling import SamplingParameters
from natively import PlainRow, life, row_with
from nets import CELL_NAMES, CELLS, config_of, configs, model_of
from row_cases import rows

cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
V = 9
MODEL = model_of(config_of(CELLS[0], V=V, H=16))
TEXTS = MODEL.tokenizer.texts
PARAMETERS = (
    {},
    {"temperature": 0.0, "logprobs": 3},
    {"repetition_penalty": 1.4, "top_p": 0.8, "min_tokens": 4, "logit_bias": ((2, 1.5),)},
)


@cells
@pytest.mark.parametrize("parameters", PARAMETERS, ids=["plain", "greedy", "everything"])
def test_torch_steps_give_the_bits_of_the_reference_backend(cell, parameters):
    model = model_of(config_of(cell, H=17, L=3, tied=True))
    admission = admission_of([3, 4, 5], max_tokens=25, seed=5, **parameters)
    expected, got = alone(ReferenceBackend(model, 3), admission, 1), alone(torch_backend(model), admission, 1)
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert [state.tobytes() for state in got[1]] == [state.tobytes() for state in expected[1]]


@settings(max_examples=60)
@given(rows())
def test_a_row_runs_as_the_contract_says(row):
    backend, plain = torch_backend(MODEL), PlainRow(row)
    backend.admit(0, dataclasses.replace(row, logprobs=0), None)
    reason = RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        block = backend.decode([0], [1], 1)
        token, reason = plain.step(backend.kept_logits(1, 1)[0, 0])
        assert (block.tokens[0, 0], RowStatus(int(block.statuses[0]))) == (token, reason)


@settings(max_examples=12)
@given(st.lists(rows(), min_size=2, max_size=9), st.integers(1, 12))
def test_rows_of_one_call_run_as_each_does_alone(several, steps):
    together = torch_backend(MODEL, 16, LateDevice())
    for slot, row in enumerate(several):
        together.admit(slot, row, None)
    block = together.decode(range(len(several)), [steps] * len(several), steps)
    for slot, row in enumerate(several):
        solo = torch_backend(MODEL, 1)
        solo.admit(0, row, None)
        tokens, reason = life(solo, 0, 1)
        taken = block.steps_taken[slot]
        assert block.tokens[:taken, slot].tolist() == tokens[:steps]
        assert (block.tokens[taken:, slot] == -1).all()
        assert block.statuses[slot] == (reason if len(tokens) <= steps else RowStatus.RUNNING)


@cells
def test_a_sequence_does_not_depend_on_the_rest_of_its_batch(cell):
    model = model_of(config_of(cell, H=17, L=2))
    random_schedule(3, lambda: torch_backend(model, 23, LateDevice()), 13, end_id=1, sequences=12)


@pytest.mark.slow
@settings(max_examples=15)
@given(configs(), st.integers(0, 2**32))
def test_a_sequence_does_not_depend_on_the_rest_of_its_batch_for_long(config, seed):
    model = model_of(config)
    slots = 5 + seed % 90
    random_schedule(seed, lambda: torch_backend(model, slots, LateDevice()), config.vocabulary_size, end_id=1)


@settings(max_examples=15)
@given(configs(), st.lists(st.integers(1, 37), min_size=1, max_size=6), st.integers(0, 2**32))
def test_the_number_of_steps_of_a_call_changes_no_bit(config, steps, seed):
    model = model_of(config)
    admission = admission_of([1, 2, 1, 2], max_tokens=90, seed=seed, repetition_penalty=1.2, logprobs=2)
    tokens, states, reason = alone(torch_backend(model, 1), admission, end_id=1)
    backend = torch_backend(model, 3, LateDevice())
    backend.admit(2, row_of(admission, end_id=1), None)
    got, ended, turn = [], RowStatus.RUNNING, 0
    while ended is RowStatus.RUNNING:
        block = backend.decode([2], [100], steps[turn % len(steps)])
        got += block.tokens[: block.steps_taken[0], 0].tolist()
        ended, turn = RowStatus(int(block.statuses[0])), turn + 1
    assert (got, ended.name) == (tokens, reason.name)
    assert backend.snapshot(2).tobytes() == states[-1].tobytes()


def test_two_groups_of_rows_run_in_turn_with_one_call_in_flight():
    model = model_of(config_of(CELLS[0], H=16))
    admissions = [admission_of([2] * (3 * i), max_tokens=40, seed=i, temperature=1.3) for i in range(10)]
    backend = torch_backend(model, 10, LateDevice())
    for slot, admission in enumerate(admissions):
        backend.admit(slot, row_of(admission, 1), None)
    groups, got, ahead = (range(4), range(4, 10)), [[] for _ in admissions], None
    for turn in range(30):
        group = groups[turn % 2]
        ticket = backend.submit(group, [5] * len(group), 5)
        if ahead is not None:
            collect(got, ahead[1](), ahead[0])
        ahead = group, ticket
    collect(got, ahead[1](), ahead[0])
    for slot, admission in enumerate(admissions):
        assert got[slot] == alone(torch_backend(model, 1), admission, 1)[0]


def test_a_row_submitted_again_before_its_end_is_known_stays_frozen():
    backend = torch_backend(MODEL, 2, LateDevice())
    backend.admit(0, row_with([3], max_tokens=4), None)
    backend.admit(1, row_with(max_tokens=99), None)
    tickets = [backend.submit([0, 1], [3, 3], 3) for _ in range(4)]
    blocks = [ticket() for ticket in tickets]
    assert [int(block.steps_taken[0]) for block in blocks] == [3, 2, 0, 0]
    assert [int(block.statuses[0]) for block in blocks] == [RowStatus.RUNNING, *[RowStatus.LENGTH] * 3]
    assert [int(block.steps_taken[1]) for block in blocks] == [3, 3, 3, 3]


def test_a_slot_reused_while_its_last_call_is_in_flight_keeps_both_sequences_apart():
    expected = alone(torch_backend(MODEL, 1), admission_of([5, 6], max_tokens=6, seed=8))
    backend = torch_backend(MODEL, 1, LateDevice())
    backend.admit(0, row_with([1, 2, 3], max_tokens=9), None)
    first = backend.submit([0], [7], 7)
    backend.release(0)
    backend.admit(0, row_of(admission_of([5, 6], max_tokens=6, seed=8)), None)
    second = backend.submit([0], [9], 9)
    assert first().tokens[:3, 0].tolist() == [1, 2, 3]
    block = second()
    assert block.tokens[: block.steps_taken[0], 0].tolist() == expected[0]
    assert backend.snapshot(0).tobytes() == expected[1][-1].tobytes()


def test_every_graph_is_captured_at_startup_without_touching_a_slot():
    device = LateDevice()
    backend = torch_backend(MODEL, 20, device)
    at_start = device.captured
    for slot in range(20):
        backend.admit(slot, row_with(max_tokens=500, sampling=SamplingParameters(top_p=0.5 + slot / 40)), None)
    for count in (1, 4, 5, 20):
        for steps in (1, 2, 7, 8, 31):
            backend.decode(range(count), [steps] * count, steps)
    assert device.captured == at_start


def test_capturing_a_graph_later_changes_no_running_row():
    device = LateDevice()
    backend, solo = torch_backend(MODEL, 2, device), torch_backend(MODEL, 1)
    for other in (backend, solo):
        other.admit(0, row_with(max_tokens=60), None)
    backend.admit(1, row_with(max_tokens=60), None)
    first = backend.submit([0, 1], [7, 7], 7)
    backend._programs.clear()
    rest = backend.submit([0, 1], [60, 60], 60)
    tokens = [t().tokens[:, 0] for t in (first, rest)]
    assert [t for t in np.concatenate(tokens).tolist() if t >= 0] == life(solo, 0, 60)[0]


def test_stop_tables_still_work_after_their_array_has_grown():
    config = dataclasses.replace(SMALL, stop_entries=64)
    backend, solo = torch_backend(MODEL, 12, LateDevice(), config), torch_backend(MODEL, 1)
    given_rows = []
    for slot in range(12):
        stops = compile_stops((TEXTS[2 + slot % 7] + TEXTS[3], "zzzz" * (slot + 1)), (), TEXTS)
        given_rows.append(row_with(max_tokens=40, stops=stops, sampling=SamplingParameters(seed=slot)))
        backend.admit(slot, given_rows[-1], None)
        backend.decode([slot], [1], 1)
    for slot, row in enumerate(given_rows):
        solo.admit(0, row, None)
        tokens, reason = life(solo, 0, 3)
        got, ended = life(backend, slot, 50)
        assert (got, ended) == (tokens[1:], reason) or len(tokens) == 1


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), max_size=40), st.data())
def test_tables_in_the_pool_never_overlap_and_all_places_become_free_again(sizes, data):
    pool, held = StopPool(CpuDevice(), 32), []
    for size, kind in sizes:
        if held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1)))[0])
        table = np.full(size, kind, dtype=np.int32)
        held.append((pool.add(table), table))
        for base, expected in held:
            assert pool.entries[base : base + len(expected)].tolist() == expected.tolist()
    while held:
        pool.release(held.pop()[0])
    assert pool._free == [(0, len(pool.entries))]


def test_log_probabilities_are_complete_when_few_steps_of_logits_fit_in_memory(monkeypatch):
    admission = admission_of([3], max_tokens=30, seed=2, logprobs=4)
    whole = torch_backend(MODEL, 2)
    monkeypatch.setattr("gruve.decode.cuda.memory.LOGIT_ENTRIES", 5 * 4 * V)
    parts = torch_backend(MODEL, 2, LateDevice())
    for backend in (whole, parts):
        backend.admit(1, row_of(admission), None)
        backend.admit(0, row_with(max_tokens=99), None)
    expected, got = (backend.decode([0, 1], [40, 40], 40).logprobs for backend in (whole, parts))
    for name in ("chosen", "top_ids", "top"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert np.isfinite(got.chosen[:31, 1]).all()
    assert np.isnan(got.chosen[31:, 1]).all()
    assert np.isnan(got.chosen[:, 0]).all()
    # The logits of an odd number of steps fit. No part begins after one, because no graph was captured for that.
    captured = parts._device.captured
    parts.admit(1, row_of(admission), None)
    parts.decode([1], [40], 40)
    assert parts._device.captured == captured == len(parts._programs)


def test_a_row_that_failed_to_reach_the_device_is_written_with_the_next_call():
    device = LateDevice()
    backend, solo = torch_backend(MODEL, 3, device), torch_backend(MODEL, 1)
    rows = [row_with([2, 3], max_tokens=9, sampling=SamplingParameters(seed=slot)) for slot in range(3)]
    for slot in range(2):
        backend.admit(slot, rows[slot], None)
    uploads, upload = iter(range(99)), device.upload
    device.upload = lambda *values: upload(*values) if next(uploads) != 3 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        backend.submit([0], [20], 20)
    device.upload = upload
    backend.release(0)
    backend.admit(2, rows[2], None)
    for slot in (1, 2):
        solo.admit(0, rows[slot], None)
        assert life(backend, slot, 20) == life(solo, 0, 20)


def test_log_probabilities_equal_those_of_the_reference_backend():
    admission = admission_of([3, 4], max_tokens=8, seed=2, temperature=0.3, top_k=2, logprobs=V + 2)
    blocks = []
    for backend in (ReferenceBackend(MODEL, 2), torch_backend(MODEL, 2)):
        backend.admit(1, row_of(admission), None)
        blocks.append(backend.decode([1], [99], 10).logprobs)
    for name in ("chosen", "top_ids", "top"):
        np.testing.assert_array_equal(getattr(blocks[0], name), getattr(blocks[1], name))


def test_a_position_of_more_than_31_bits_is_refused():
    with pytest.raises(ValueError, match="position 2147483648"):
        torch_backend(MODEL, 1).admit(0, dataclasses.replace(row_with(), position=1 << 31), None)


def test_the_rows_of_a_call_are_limited_by_the_memory_for_logits():
    assert torch_backend(model_of(config_of(CELLS[0], V=40, H=8, L=1)), 70).max_rows == 64
    large = model_of(config_of(CELLS[3], V=30_000, E=4, H=8, L=1))
    config = dataclasses.replace(SMALL, sizes=(2, 512, 1_024))
    assert torch_backend(large, 2_000, config=config).max_rows == 512


def collect(got, block, slots) -> None:
    """Appends each row's tokens of a block."""
    for i, slot in enumerate(slots):
        got[slot] += block.tokens[: block.steps_taken[i], i].tolist()
