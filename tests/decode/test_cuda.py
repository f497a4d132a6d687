"""The GPU path's bookkeeping, on this CPU with the same code: slots, calls, what is captured, one call ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone, row_of
from devices import SMALL, LateDevice, torch_backend
from engines import random_schedule
from gruve.decode import RowStatus
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.decode.cuda import modes
from gruve.decode.cuda.device import CpuDevice
from gruve.decode.cuda.exact import check_exact
from gruve.decode.cuda.pool import StopPool
from gruve.decode.reference import ReferenceBackend
from gruve.decode.stops import compile_stops
from gruve.errors import InvalidField, ModelBroken
from gruve.model.sampling import SamplingParameters
from natively import PlainRow, life, row_with
from nets import CELL_NAMES, CELLS, config_of, configs, model_of, pointers_of
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
def test_torch_operations_on_records_make_the_reference_backends_bits(cell, parameters):
    model = model_of(config_of(cell, H=17, L=3, tied=True))
    admission = admission_of([3, 4, 5], max_tokens=25, seed=5, **parameters)
    expected, got = alone(ReferenceBackend(model, 3), admission, 1), alone(torch_backend(model), admission, 1)
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert [state.tobytes() for state in got[1]] == [state.tobytes() for state in expected[1]]


@settings(max_examples=60)
@given(rows())
def test_a_row_lives_as_the_contract_says(row):
    backend, plain = torch_backend(MODEL), PlainRow(row)
    backend.admit(0, dataclasses.replace(row, logprobs=0), None)
    reason = RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        block = backend.decode([0], [1], 1)
        token, reason = plain.step(backend.kept_logits(1, 1)[0, 0])
        assert (block.tokens[0, 0], RowStatus(int(block.statuses[0]))) == (token, reason)


@settings(max_examples=12)
@given(st.lists(rows(), min_size=2, max_size=9), st.integers(1, 12))
def test_rows_in_one_call_live_as_each_does_alone(several, steps):
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
def test_whoever_shares_the_batch_every_sequence_is_as_it_is_alone(cell):
    model = model_of(config_of(cell, H=17, L=2))
    random_schedule(3, lambda: torch_backend(model, 23, LateDevice()), 13, end_id=1, sequences=12)


@pytest.mark.slow
@settings(max_examples=15)
@given(configs(), st.integers(0, 2**32))
def test_whoever_shares_the_batch_every_sequence_is_as_it_is_alone_for_long(config, seed):
    model = model_of(config)
    slots = 5 + seed % 90
    random_schedule(seed, lambda: torch_backend(model, slots, LateDevice()), config.vocabulary_size, end_id=1)


@settings(max_examples=15)
@given(configs(), st.lists(st.integers(1, 37), min_size=1, max_size=6), st.integers(0, 2**32))
def test_how_many_steps_a_call_takes_changes_no_bit(config, steps, seed):
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


def test_two_groups_of_rows_take_turns_one_call_ahead_of_their_results():
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


def test_a_slot_given_to_another_while_its_last_call_is_under_way_keeps_the_two_apart():
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


def test_everything_is_captured_at_the_start_and_with_nobody_in_it():
    device = LateDevice()
    backend = torch_backend(MODEL, 20, device)
    at_start = device.captured
    for slot in range(20):
        backend.admit(slot, row_with(max_tokens=500, sampling=SamplingParameters(top_p=0.5 + slot / 40)), None)
    for count in (1, 4, 5, 20):
        for steps in (1, 2, 7, 8, 31):
            backend.decode(range(count), [steps] * count, steps)
    assert device.captured == at_start


def test_a_program_captured_while_rows_run_moves_none_of_them():
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


def test_stop_tables_that_outgrow_their_place_move_and_are_read_where_they_are():
    config = dataclasses.replace(SMALL, stop_entries=64)
    backend, solo = torch_backend(MODEL, 12, LateDevice(), config), torch_backend(MODEL, 1)
    asked = []
    for slot in range(12):
        stops = compile_stops((TEXTS[2 + slot % 7] + TEXTS[3], "zzzz" * (slot + 1)), (), TEXTS)
        asked.append(row_with(max_tokens=40, stops=stops, sampling=SamplingParameters(seed=slot)))
        backend.admit(slot, asked[-1], None)
        backend.decode([slot], [1], 1)
    for slot, row in enumerate(asked):
        solo.admit(0, row, None)
        tokens, reason = life(solo, 0, 3)
        got, ended = life(backend, slot, 50)
        assert (got, ended) == (tokens[1:], reason) or len(tokens) == 1


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), max_size=40), st.data())
def test_places_in_the_pool_never_overlap_and_all_come_back(sizes, data):
    pool, held = StopPool(CpuDevice(), 32), []
    for size, kind in sizes:
        if held and data.draw(st.booleans()):
            pool.drop(held.pop(data.draw(st.integers(0, len(held) - 1)))[0])
        table = np.full(size, kind, dtype=np.int32)
        held.append((pool.add(table), table))
        for base, expected in held:
            assert pool.entries[base : base + len(expected)].tolist() == expected.tolist()
    while held:
        pool.drop(held.pop()[0])
    assert pool._free == [(0, len(pool.entries))]


def test_logits_are_kept_of_as_many_steps_as_have_room_and_none_is_lost(monkeypatch):
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
    # An odd number of steps is kept; nothing begins after one, for which nothing was captured at the start.
    captured = parts._device.captured
    parts.admit(1, row_of(admission), None)
    parts.decode([1], [40], 40)
    assert parts._device.captured == captured == len(parts._programs)


def test_a_row_that_could_not_be_told_of_is_told_of_with_the_next_call():
    device = LateDevice()
    backend, solo = torch_backend(MODEL, 3, device), torch_backend(MODEL, 1)
    rows = [row_with([2, 3], max_tokens=9, sampling=SamplingParameters(seed=slot)) for slot in range(3)]
    for slot in range(2):
        backend.admit(slot, rows[slot], None)
    puts, put = iter(range(99)), device.put
    device.put = lambda *values: put(*values) if next(puts) != 3 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        backend.submit([0], [20], 20)
    device.put = put
    backend.release(0)
    backend.admit(2, rows[2], None)
    for slot in (1, 2):
        solo.admit(0, rows[slot], None)
        assert life(backend, slot, 20) == life(solo, 0, 20)


def test_log_probabilities_are_the_references():
    admission = admission_of([3, 4], max_tokens=8, seed=2, temperature=0.3, top_k=2, logprobs=V + 2)
    blocks = []
    for backend in (ReferenceBackend(MODEL, 2), torch_backend(MODEL, 2)):
        backend.admit(1, row_of(admission), None)
        blocks.append(backend.decode([1], [99], 10).logprobs)
    for name in ("chosen", "top_ids", "top"):
        np.testing.assert_array_equal(getattr(blocks[0], name), getattr(blocks[1], name))


def test_a_slot_that_was_released_is_empty_and_keeps_its_state_until_it_is_taken_again():
    backend = torch_backend(MODEL, 1)
    backend.admit(0, row_with(max_tokens=3), None)
    life(backend, 0, 3)
    state = backend.snapshot(0)
    backend.release(0)
    assert backend.snapshot(0).tobytes() == state.tobytes()
    with pytest.raises(ValueError, match="slot 0 holds no sequence"):
        backend.decode([0], [1], 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"history": np.array([V], dtype=np.int32)}, "history token 9 is not between 0 and 8"),
        ({"history": np.array([], dtype=np.int32)}, "history's size 0"),
        ({"forced": np.array([1, -1], dtype=np.int32)}, "forced token -1"),
        ({"position": -1}, "position -1"),
        ({"position": 1 << 31}, "position 2147483648"),
        ({"end_id": V}, "end_id 9"),
        ({"max_tokens": -1}, "max_tokens -1"),
        ({"min_tokens": -5}, "min_tokens -5"),
        ({"generated": -1}, "generated -1"),
        ({"logprobs": 1_025}, "logprobs 1025"),
        ({"stop_state": 1}, "stop_state 1"),
        ({"sampling": SamplingParameters(logit_bias=((V, 1.0),))}, "logit_bias token 9"),
        ({"stops": compile_stops(("a",), (), ("a",) * (V + 1))}, "stop table of shape"),
    ],
)
def test_a_row_out_of_bounds_is_refused_and_the_slot_stays_as_it_was(changes, complaint):
    backend = torch_backend(MODEL, 1)
    backend.admit(0, row_with(max_tokens=3), None)
    with pytest.raises(ValueError, match=complaint):
        backend.admit(0, dataclasses.replace(row_with(), **changes), None)
    undisturbed = torch_backend(MODEL, 1)
    undisturbed.admit(0, row_with(max_tokens=3), None)
    assert life(backend, 0, 3) == life(undisturbed, 0, 3)


@pytest.mark.parametrize("entry", [2, -1, 1 << 29, -(1 << 31)])
def test_a_stop_table_that_leads_nowhere_is_refused(entry):
    stops = compile_stops(("a",), (), TEXTS)
    stops.table[1, 3] = entry
    with pytest.raises(ValueError, match="a stop table's next state"):
        torch_backend(MODEL, 1).admit(0, row_with(stops=stops), None)


@pytest.mark.parametrize(
    ("slots", "limits", "steps", "complaint"),
    [
        ([0, 0], [1, 1], 1, "slot 0 is given twice"),
        ([5], [1], 1, "slot 5 is not between 0 and 4"),
        ([4], [1], 1, "slot 4 holds no sequence"),
        ([0], [-1], 1, "limit -1"),
        ([0], [1], 0, "steps 0"),
        ([0], [1], 257, "steps 257"),
        ([0], [1, 1], 1, "1 slots and 2 limits"),
        ([], [], 1, "0 slots"),
        (range(17), [1] * 17, 1, "17 slots"),
    ],
)
def test_a_call_out_of_bounds_is_refused(slots, limits, steps, complaint):
    backend = torch_backend(MODEL, 5)
    backend.admit(0, row_with(), None)
    with pytest.raises(ValueError, match=complaint):
        backend.decode(slots, limits, steps)


def test_a_state_of_another_shape_or_a_slot_that_is_not_there_is_refused():
    backend = torch_backend(MODEL, 1)
    with pytest.raises(ValueError, match=r"a state of shape \(1, 2, 17\)"):
        backend.admit(0, row_with(), np.zeros((1, 2, 17), dtype=np.float32))
    for refused in (backend.snapshot, backend.release, lambda slot: backend.admit(slot, row_with(), None)):
        with pytest.raises(ValueError, match="slot 1 is not between 0 and 0"):
            refused(1)


def test_a_call_takes_as_many_rows_as_its_logits_have_room_for():
    assert torch_backend(model_of(config_of(CELLS[0], V=40, H=8, L=1)), 70).max_rows == 64
    large = model_of(config_of(CELLS[3], V=30_000, E=4, H=8, L=1))
    config = dataclasses.replace(SMALL, sizes=(2, 512, 1_024))
    assert torch_backend(large, 2_000, config=config).max_rows == 512


@cells
def test_at_the_start_a_row_is_shown_to_be_the_same_at_every_place(cell):
    model = model_of(config_of(cell, H=17))
    check_exact(torch_backend(model, 20), model.config)


def test_a_step_whose_rows_depend_on_their_place_is_refused():
    backend = torch_backend(MODEL, 20)
    step = backend._step.step

    def unfair(rows, parity, *, plain):
        step(rows, parity, plain=plain)
        rows.states[0, 0, 3] += 1e-7

    backend._step.step = unfair
    with pytest.raises(ModelBroken, match="a row at place 3 of 4 makes other bits than alone"):
        check_exact(backend, MODEL.config)


def test_of_the_ways_to_use_a_gpu_the_first_that_works_is_taken_and_says_why(monkeypatch):
    def make(model, slots, mode, why):
        if mode == "triton":
            raise ModelBroken("it has no compiler")
        return (mode, why)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modes, "_make", make)
    why = "a GPU was asked for; triton does not work here: it has no compiler; decoding with graph"
    assert choose_backend(MODEL, DecodeConfig("cuda")) == ("graph", why)
    assert choose_backend(MODEL, DecodeConfig(cuda="eager"))[0] == "eager"
    with pytest.raises(ModelBroken, match="it has no compiler"):
        choose_backend(MODEL, DecodeConfig(cuda="triton"))


def test_a_gpu_decodes_a_model_with_pointers_by_the_reference_and_says_why(monkeypatch):
    model = model_of(config_of(CELLS[0], V=9, H=16, pointers=pointers_of(9)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modes, "ReferenceBackend", lambda *given: given)
    _, _, device, reason = choose_backend(model, DecodeConfig("cuda"))
    assert (device, reason) == (
        "cuda",
        "a GPU was asked for; triton and graph do not compute pointers; decoding with eager",
    )
    for mode in ("triton", "graph"):
        with pytest.raises(ModelBroken, match="only the modes 'auto' and 'eager' compute them"):
            choose_backend(model, DecodeConfig(cuda=mode))


def test_without_a_gpu_asking_for_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidField, match="torch sees no GPU"):
        choose_backend(MODEL, DecodeConfig("cuda"))


def collect(got, block, slots) -> None:
    """Appends each row's tokens of a block."""
    for i, slot in enumerate(slots):
        got[slot] += block.tokens[: block.steps_taken[i], i].tolist()
