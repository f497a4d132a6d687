"""int8 on a GPU: the Triton kernels, interpreted and compiled, and the captured operations make the CPU's bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from devices import SHARED_BYTES, SPILLED_BYTES, LateDevice, compiled, need_triton, torch_backend, triton_backend
from gruve.decode import RowStatus, int8
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.decode.cuda import modes
from gruve.decode.cuda.exact import check_int8
from gruve.decode.cuda.interpreted import interpreted_backend
from gruve.decode.cuda.memory import SLOT
from gruve.decode.cuda.records import Field
from gruve.decode.reference import ReferenceBackend
from gruve.decode.stops import compile_stops
from gruve.errors import ModelBroken
from gruve.model.pointer_tracker import PointerTracker
from gruve.model.sampling import SamplingParameters
from natively import row_with
from nets import CELL_NAMES, CELLS, config_of, model_of
from pointing import POINTERS, V, tune

need_triton_now = pytest.fixture(autouse=True, scope="module")(need_triton)
cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
SAMPLING = (
    SamplingParameters(seed=1),
    SamplingParameters(seed=2, temperature=0.7, top_k=5, top_p=0.9),
    SamplingParameters(seed=3, temperature=0.0, repetition_penalty=1.3, repetition_window=8),
    SamplingParameters(seed=4, min_p=0.05, logit_bias=((2, 1.5),)),
)


def bits(backend, model, rows: int, calls: list[int], history=(0,)):
    """Everything that mixed rows make: prompts of several lengths, every way of sampling, stops, log-probabilities."""
    config = model.config
    shape = (rows, config.state_tensors, config.num_layers, config.hidden_size)
    states = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
    stops = compile_stops((), (2,), model.tokenizer.texts)
    for i in range(rows):
        end, position = len(history) - i % len(history), len(history) - 1 - i % len(history)
        prompt, sampling = [3, 11, 12][: 2 * (i % 2)], SAMPLING[i % 4]
        row = row_with(prompt, history=history[max(0, end - 1_024) : end], position=position, max_tokens=3 + 9 * i)
        row = dataclasses.replace(row, sampling=sampling, logprobs=2)
        backend.admit(i, dataclasses.replace(row, stops=stops if i % 2 else None, end_id=1), states[i])
    made, running = [], list(range(rows))
    for steps in calls:
        if not running:
            break
        block = backend.decode(running, [steps] * len(running), steps)
        made += [block.tokens.tolist(), block.statuses.tolist()]
        running = [slot for slot, status in zip(running, block.statuses, strict=True) if status == RowStatus.RUNNING]
        for i, taken in enumerate(block.steps_taken):
            found = block.logprobs.chosen, block.logprobs.top_ids, block.logprobs.top
            made += [values[:taken, i].tobytes() for values in found]
    return made, [backend.snapshot(i).tobytes() for i in range(rows)]


def compare(make, config, rows, calls, *, history=(0,)):
    """Compares a backend with the reference."""
    model = model_of(config)
    reference = ReferenceBackend(model, rows, arithmetic="int8")
    with np.errstate(all="ignore"):  # numpy's warnings about NaN, and of a tiny temperature's -inf
        expected = bits(reference, model, rows, calls, history)
        assert bits(make(model, rows), model, rows, calls, history) == expected


@cells
def test_interpreted_kernels_make_the_bits_of_the_reference(cell):
    compare(interpreted_backend, config_of(cell, H=9, L=2), 4, [1])


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "H", "L", "rows"), [(0, 24, 3, 20), (1, 40, 2, 17), (2, 17, 2, 5), (3, 16, 1, 1)])
def test_interpreted_kernels_make_the_bits_of_the_reference_for_long(cell, H, L, rows):
    config = config_of(CELLS[cell], V=40, H=H, L=L, tied=cell == 1)
    compare(lambda model, slots: interpreted_backend(model, slots, LateDevice()), config, rows, [2, 1, 4])


@cells
def test_captured_operations_make_the_bits_of_the_reference(cell):
    compare(lambda model, slots: torch_backend(model, slots, arithmetic="int8"), config_of(cell, H=17), 6, [1, 4])


@pytest.mark.parametrize("value", [1e-40, 3.0, np.inf, np.nan])
def test_kernels_agree_on_states_that_no_cell_makes(value):
    model = model_of(config_of(CELLS[2], H=16, L=1))
    state = np.random.default_rng(1).uniform(-1, 1, (2, 1, 16)).astype(np.float32)
    state[..., ::5] = value
    after = []
    for backend in (ReferenceBackend(model, 1, arithmetic="int8"), interpreted_backend(model, 1)):
        backend.admit(0, row_with(max_tokens=3), state)
        with np.errstate(invalid="ignore"):
            backend.decode([0], [1], 1)
        after.append(backend.snapshot(0))
    assert np.array_equal(*after, equal_nan=True)


def test_kernels_make_the_same_bits_where_the_vocabulary_is_too_large_for_a_table_and_for_one_tile(monkeypatch):
    monkeypatch.setattr("gruve.decode.int8.MAX_TABLE_ENTRIES", 0)
    monkeypatch.setattr("gruve.decode.cuda.draw.MAX_VOCABULARY", 12)
    compare(interpreted_backend, config_of(CELLS[0], H=16, L=1), 3, [2])


def test_int8_has_the_id_of_every_backend_in_every_mode():
    model = model_of(config_of(CELLS[0], H=16, L=1))
    backends = interpreted_backend(model, 1), torch_backend(model, 1, arithmetic="int8")
    assert [backend.numerics_id for backend in backends] == [int8.numerics_id(model.config)] * 2
    assert triton_backend(model, 1).numerics_id != backends[0].numerics_id


def test_the_startup_check_compares_int8_with_a_cpu():
    model = model_of(config_of(CELLS[0], H=16, L=1))
    backend = torch_backend(model, 2, arithmetic="int8")
    check_int8(backend, model)
    step = backend._step.step

    def near(rows, parity, *, plain):
        step(rows, parity, plain=plain)
        rows.states[0, 0, 0, 3] += 1e-7

    backend._step.step = near
    with pytest.raises(ModelBroken, match="int8 has other bits here than on a CPU"):
        check_int8(backend, model)


def test_a_gpu_decodes_int8_in_each_mode(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modes, "_make", lambda *values: given.append(values[2:]))
    model = model_of(config_of(CELLS[0], H=16, L=1))
    for mode in ("auto", "graph", "eager"):
        choose_backend(model, DecodeConfig("cuda", arithmetic="int8", cuda=mode))
    why = "a GPU was asked for; decoding with"
    assert given == [(mode, f"{why} {mode}", "int8") for mode in ("triton", "graph", "eager")]


def test_a_gpu_decodes_int8_with_pointers_in_kernels_and_not_in_captured_operations(monkeypatch):
    given = []
    model = model_of(pointed_config(CELLS[0], "all", L=1))
    with pytest.raises(ModelBroken, match="has pointers, which the mode 'graph' does not compute"):
        torch_backend(model, 1, arithmetic="int8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modes, "_make", lambda *values: given.append(values[2:]))
    choose_backend(model, DecodeConfig("cuda", arithmetic="int8"))
    why = "a GPU was asked for; graph does not compute pointers; decoding with triton"
    assert given == [("triton", why, "int8")]


# How many fused operations the statement has for each number of a tile. One more would be a product and a sum that the
# compiler has joined, one less a fused one that it has split.
ACTIVATION = 6
FUSED = {
    "point": 0,
    "gru below": 6 + 3 * ACTIVATION + 2,
    "gru table": 3 + 3 * ACTIVATION + 2,
    "lstm below": 8 + 5 * ACTIVATION + 1,
    "elman below": 2 + ACTIVATION,
    "reset_and_update below": 4 + 2 * ACTIVATION,
    "candidate below": 2 + ACTIVATION + 1,
    "head": 1,
}


def check_compiled(kernels: list[dict]) -> None:
    """Integer products, the statement's own operations, all rounded to nearest, and no denormal flushed."""
    for found in kernels:
        assert found["integer_products"] == found["wgmma"] + found["mma"], found
        assert (found["integer_products"] > 0) == (found["kernel"] != "point"), found
        assert found["fused"] == FUSED[found["kernel"]] * found["numbers"], found
        assert found["loose"] == [], found
        assert found["shared_bytes"] <= SHARED_BYTES, found
        assert found["spilled_bytes"] <= SPILLED_BYTES, found
        assert found["async_copies"] > 0 or found["kernel"] == "point", found


@pytest.mark.slow
def test_kernels_compile_to_integer_products_and_to_the_operations_of_the_statement(tmp_path):
    kernels = compiled(tmp_path, "int8", "512", "140", *FUSED)
    assert len(kernels) == 2 * len(FUSED)
    check_compiled(kernels)


def check_pointing(kind: str, lengths, more: int):
    """Transcripts of these lengths, each continued by `more` tokens: the kernel's values are the tracker's."""
    model = model_of(config_of(CELLS[3], V=V, H=16, L=1, pointers=POINTERS[kind]))
    backend, trackers, transcripts = interpreted_backend(model, len(lengths)), [], []
    for slot, length in enumerate(lengths):
        transcripts.append(tune(length + more, slot))
        trackers.append(PointerTracker(POINTERS[kind], V))
        for token in transcripts[-1][: length - 1]:
            trackers[-1].feed(token)
        history = transcripts[-1][:length]
        backend.admit(slot, row_with(history=history[-1_024:], position=length - 1), None)
    backend.decode(range(len(lengths)), [0] * len(lengths), 1)  # writes the rows, takes no step
    rows, size = backend.memory.rows(backend.sizes[-1]), len(lengths)
    rows.inbox[SLOT, :size] = torch.arange(size)
    rows.integers[:size, Field.ACTIVE] = 1
    for k in range(more):
        for i, length in enumerate(lengths):
            rows.integers[i, Field.PENDING], rows.integers[i, Field.POSITION] = (
                transcripts[i][length - 1 + k],
                length - 1 + k,
            )
        backend._step._point(rows)
        for i, made in enumerate(backend._step._pointed_rows(rows)[:size].tolist()):
            tokens, matches, place_row, count_row = trackers[i].feed(transcripts[i][lengths[i] - 1 + k])
            assert made == [*tokens, *matches, place_row, count_row], (i, k)


def test_the_kernel_points_as_the_definition_says():
    check_pointing("all", [2, 1_024, 1_500], 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", POINTERS)
def test_the_kernel_points_as_the_definition_says_for_long(kind):
    check_pointing(kind, [7, 90, 1_020, 1_500], 12)


def pointed_config(cell, kind, **more):
    return config_of(cell, V=V, H=9, pointers=POINTERS[kind], **more)


def test_interpreted_kernels_make_the_bits_of_the_reference_with_pointers():
    compare(interpreted_backend, pointed_config(CELLS[0], "all"), 3, [1])


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "kind"), [(1, "followers"), (2, "bars"), (3, "no-start")])
def test_interpreted_kernels_make_the_bits_of_the_reference_with_pointers_for_long(cell, kind):
    compare(interpreted_backend, pointed_config(CELLS[cell], kind), 4, [3, 1, 3], history=tune(1_100))


def test_pointers_work_where_the_vocabulary_is_too_large_for_a_table_and_for_one_tile(monkeypatch):
    monkeypatch.setattr("gruve.decode.int8.MAX_TABLE_ENTRIES", 0)
    monkeypatch.setattr("gruve.decode.cuda.draw.MAX_VOCABULARY", V)
    compare(interpreted_backend, pointed_config(CELLS[0], "all", L=1), 2, [1])
