"""The Triton kernels, interpreted on the CPU: logits near the oracle, exact samples, bits independent of the batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone, row_of
from devices import SHARED_BYTES, SMALL, SPILLED_BYTES, LateDevice, compiled, need_triton, torch_backend, triton_backend
from gruve.decode import Row, RowStatus
from gruve.decode.cuda.exact import check_exact
from gruve.decode.cuda.records import Field
from gruve.decode.reference import ReferenceBackend
from gruve.decode.stops import compile_stops
from gruve.model import sampling as law
from gruve.model.oracle import Oracle
from natively import PlainRow, life, row_with
from nets import CELL_NAMES, CELLS, config_of, configs, model_of
from pointing import POINTERS, V, tune
from row_cases import rows as native_rows
from sampling_cases import masked_of, parameters

need_triton_now = pytest.fixture(autouse=True, scope="module")(need_triton)
cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
BOUNDS = {"float16": 2e-2, "float32": 1e-4}


@pytest.fixture
def exact_products(monkeypatch):
    """Replaces the interpreter's matrix product, whose library sums some rows of a matrix in another order."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def create_dot(self, a, b, d, *_):
        product = np.einsum("mk,kn->mn", a.data.astype(np.float32), b.data.astype(np.float32))
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def distance_to_oracle(config, precision: str, tokens: int) -> float:
    """The greatest difference to the oracle's log-probabilities over forced tokens."""
    model = model_of(config)
    if config.cell == "elman":  # a gain above 1 makes it chaotic, so every rounding error grows
        calm = {name: (w * 0.5).half().float() if "weight_hh" in name else w for name, w in model.weights.items()}
        model = dataclasses.replace(model, weights=calm)
    size = config.vocabulary_size
    forced = np.random.default_rng(5).integers(0, size, tokens).astype(np.int32)
    if config.pointers is not None:
        forced = np.array(tune(tokens + 1)[1:], dtype=np.int32)
    expected = Oracle(config, model.weights).run([0, *forced[:-1]])
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    backend, worst = triton_backend(model, 1, precision=precision), 0.0
    backend.admit(0, row_of(admission_of(forced, max_tokens=0, logprobs=size)), None)
    for first in range(0, tokens, 10):
        made = backend.decode([0], [10], 10).logprobs
        got = np.empty((10, size))
        np.put_along_axis(got, made.top_ids[:, 0], made.top[:, 0].astype(np.float64), axis=1)
        worst = max(worst, float(np.abs(got - expected[first : first + 10]).max()))
    return worst


@cells
@pytest.mark.parametrize("precision", BOUNDS)
def test_logits_stay_within_their_bound_of_the_oracle(cell, precision):
    assert distance_to_oracle(config_of(cell, H=17, L=2, tied=True), precision, 20) < BOUNDS[precision]


def pointed_config(cell, kind, **more):
    return config_of(cell, V=V, H=9, pointers=POINTERS[kind], **more)


@pytest.mark.parametrize("precision", BOUNDS)
def test_logits_with_pointers_stay_within_their_bound_of_the_oracle(precision):
    assert distance_to_oracle(pointed_config(CELLS[0], "all"), precision, 20) < BOUNDS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("cell", "kind"), [(0, "all"), (1, "followers"), (2, "bars"), (3, "no-start")])
def test_logits_with_pointers_stay_within_their_bound_of_the_oracle_for_long(cell, kind, precision):
    assert distance_to_oracle(pointed_config(CELLS[cell], kind, E=20), precision, 50) < BOUNDS[precision]


def test_pointers_work_where_the_vocabulary_is_too_large_for_a_table_and_for_one_tile(monkeypatch):
    monkeypatch.setattr("gruve.decode.cuda.triton_step.MAX_TABLE_ENTRIES", 0)
    assert distance_to_oracle(pointed_config(CELLS[0], "all", L=1), "float32", 20) < BOUNDS["float32"]
    monkeypatch.setattr("gruve.decode.cuda.draw.MAX_VOCABULARY", V)
    model, admission = model_of(pointed_config(CELLS[0], "all", L=1)), admission_of(tune(30)[1:], max_tokens=9, seed=4)
    expected, got = alone(ReferenceBackend(model, 1), admission), alone(triton_backend(model, 1), admission)
    assert got[0] == expected[0]


def test_kernels_with_pointers_have_a_numerics_id_of_their_own():
    ids = [
        triton_backend(model_of(config), 1).numerics_id
        for config in (config_of(CELLS[0], H=9), pointed_config(CELLS[0], "all"))
    ]
    assert ids[0] != ids[1]


@pytest.mark.slow
@cells
@pytest.mark.parametrize("precision", BOUNDS)
def test_logits_stay_within_their_bound_of_the_oracle_for_long(cell, precision):
    assert distance_to_oracle(config_of(cell, V=31, E=20, H=40, L=3), precision, 60) < BOUNDS[precision]


@pytest.mark.slow
def test_rounded_operands_keep_the_state_near_the_oracle_for_500_tokens():
    assert distance_to_oracle(config_of(CELLS[0], H=17, L=2), "float16", 500) < BOUNDS["float16"]


@cells
def test_a_vocabulary_too_large_for_an_input_table_is_computed(cell, monkeypatch):
    monkeypatch.setattr("gruve.decode.cuda.triton_step.MAX_TABLE_ENTRIES", 0)
    assert distance_to_oracle(config_of(cell, E=20, H=16), "float32", 10) < 1e-4


def test_a_vocabulary_too_large_for_one_tile_is_sampled_by_torch(monkeypatch):
    monkeypatch.setattr("gruve.decode.cuda.draw.MAX_VOCABULARY", 12)
    model = model_of(config_of(CELLS[0], H=17))
    admission = admission_of([3, 4], max_tokens=12, seed=4, repetition_penalty=1.3)
    expected, got = alone(ReferenceBackend(model, 1), admission), alone(triton_backend(model, 1), admission)
    assert got[0] == expected[0]


@cells
def test_torch_operations_and_kernels_sample_alike_from_almost_equal_logits(cell):
    model = model_of(config_of(cell, H=16))
    admission = admission_of([3, 4], max_tokens=12, seed=4, temperature=0.9)
    exact = triton_backend(model, precision="float32", device=LateDevice())
    expected, got = alone(torch_backend(model), admission), alone(exact, admission)
    assert got[0] == expected[0]
    assert max(np.abs(a - b).max() for a, b in zip(got[1], expected[1], strict=True)) < 1e-5


@settings(max_examples=5)
@given(native_rows())
def test_a_row_runs_as_the_contract_says(row):
    model = model_of(config_of(CELLS[3], V=9, H=16, L=1))
    backend, plain = triton_backend(model), PlainRow(row)
    backend.admit(0, dataclasses.replace(row, logprobs=0), None)
    reason = RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        with np.errstate(over="ignore"):  # with a tiny temperature a difference becomes -inf, whose weight is 0
            block = backend.decode([0], [1], 1)
        token, reason = plain.step(backend.kept_logits(1, 1)[0, 0])
        assert (block.tokens[0, 0], RowStatus(int(block.statuses[0]))) == (token, reason)


@pytest.mark.slow
@settings(max_examples=30)
@given(native_rows())
def test_a_row_runs_as_the_contract_says_for_long(row):
    test_a_row_runs_as_the_contract_says.hypothesis.inner_test(row)


@st.composite
def draws(draw, vocabularies):
    """The rows and logits of a call: ties, masks, positions below and above the history's length, every parameter."""
    V = draw(st.sampled_from(vocabularies))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(4):
        logits = (generator.normal(size=V) * draw(st.sampled_from([0.0, 1.0, 20.0]))).astype(np.float32)
        logits = np.round(logits) if draw(st.booleans()) else logits
        position = draw(st.sampled_from([1, 2, 5, 1023, 1024, 1025, 5000, 2**20 - 1]))
        minimum, drawn = draw(st.sampled_from([(0, 0), (3, 2), (3, 3)]))
        row = Row(
            generator.integers(0, V, size=min(position, 1024)).astype(np.int32),
            position - 1,
            np.empty(0, dtype=np.int32),
            draw(parameters(V)),
            max_tokens=9,
            min_tokens=minimum,
            end_id=draw(st.sampled_from([None, 1])),
            ignore_eos=draw(st.booleans()),
            stops=compile_stops((), (V - 1,), ("x",) * V) if V > 2 and draw(st.booleans()) else None,
            generated=drawn,
        )
        made.append((row, logits))
    return V, made


def check_draws(V: int, made) -> None:
    """Samples from given logits: the head is the identity, so the kernel sees the same bits as `model/sampling.py`."""
    model = model_of(config_of(CELLS[3], V=V, E=V, H=max(V, 8), L=1))
    backend = triton_backend(model, 4, precision="float32")
    step, rows = backend._step, backend.memory.rows(4)
    step._head = torch.eye(len(step._head), step.hidden_size)
    step._head_bias.zero_()
    for slot, (row, _) in enumerate(made):
        backend.admit(slot, row, None)
    backend._take_steps = lambda *_: None
    backend._programs.clear()
    backend.decode(range(4), [1] * 4, 1)  # gathers, takes no step
    rows.integers[:, Field.ACTIVE] = 1
    operand = step._operand(0, rows)[-1]
    operand[:, :V] = torch.from_numpy(np.stack([logits for _, logits in made]))
    with np.errstate(over="ignore"):  # with a tiny temperature a difference becomes -inf, whose weight is 0
        step._head_and_draw(rows, operand)
    expected = [
        law.draw(
            logits,
            row.sampling,
            position=row.position + 1,
            history=row.history,
            masked=masked_of(row, row.generated),
        )
        for row, logits in made
    ]
    assert rows.integers[:, Field.PENDING].tolist() == expected


@settings(max_examples=25)
@given(draws([3, 13, 40]))
def test_equal_logits_give_the_samples_of_the_definition(made):
    check_draws(*made)


@pytest.mark.slow
@settings(max_examples=200)
@given(draws([3, 4, 13, 40, 140, 300]))
def test_equal_logits_give_the_samples_of_the_definition_for_long(made):
    check_draws(*made)


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize(
    "config",
    [*(config_of(cell, H=17, L=2) for cell in CELLS), pointed_config(CELLS[0], "all")],
    ids=[*CELL_NAMES, "pointers"],
)
def test_the_startup_check_passes_when_bits_do_not_depend_on_the_place(config):
    model = model_of(config)
    with np.errstate(invalid="ignore"):  # the other rows are NaN
        check_exact(triton_backend(model, 18, config=dataclasses.replace(SMALL, sizes=(4, 32))), model.config)


@pytest.mark.slow
@pytest.mark.usefixtures("exact_products")
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(configs(), st.integers(0, 2**32))
def test_a_row_does_not_depend_on_the_other_rows(config, seed):
    model = model_of(config)
    chance = np.random.default_rng(seed)
    admissions = [
        admission_of(chance.integers(0, config.vocabulary_size, i % 4), max_tokens=6, seed=seed % 99 + i)
        for i in range(18)
    ]
    together = triton_backend(model, 18, LateDevice())
    for slot, admission in enumerate(admissions):
        together.admit(slot, row_of(admission, 1), None)
    block = together.decode(range(18), [20] * 18, 20)
    for slot in (0, 5, 16, 17):
        solo = triton_backend(model, 1)
        solo.admit(0, row_of(admissions[slot], 1), None)
        tokens, _ = life(solo, 0, 3)
        assert block.tokens[: block.steps_taken[slot], slot].tolist() == tokens
        assert together.snapshot(slot).tobytes() == solo.snapshot(0).tobytes()


def test_prompts_and_stops_work_in_two_groups_with_one_call_in_flight():
    model = model_of(config_of(CELLS[0], H=16, L=1))
    stops = compile_stops((model.tokenizer.texts[5],), (), model.tokenizer.texts)
    asked = [row_with([2] * i, max_tokens=5, stops=stops, sampling=law.SamplingParameters(seed=i)) for i in range(4)]
    ahead, solo = triton_backend(model, 4, LateDevice()), triton_backend(model, 1)
    for slot, row in enumerate(asked):
        ahead.admit(slot, row, None)
    tickets = [(group, ahead.submit(group, [4, 4], 4)) for _ in range(2) for group in ([0, 1], [2, 3])]
    got = [[], [], [], []]
    for group, ticket in tickets:
        block = ticket()
        for i, slot in enumerate(group):
            got[slot] += block.tokens[: block.steps_taken[i], i].tolist()
    for slot, row in enumerate(asked):
        solo.admit(0, row, None)
        assert got[slot] == life(solo, 0, 2)[0]


def check_compiled(kernels: list[dict]) -> None:
    for found in kernels:
        assert found["shared_bytes"] <= SHARED_BYTES, found
        # In fp32 and with more than 256 tokens, the head needs more registers than there are.
        wide = found["kernel"].startswith("head") and found["V"] > 256 and found["precision"] == "float32"
        assert found["spilled_bytes"] <= (128 if wide else SPILLED_BYTES), found
        assert found["registers"] <= 255, found
        assert found["async_copies"] > 0, found
        if found["precision"] == "float16":
            wgmma = found["sm"] == 90 and not found["kernel"].startswith("head")
            assert found["wgmma" if wgmma else "mma"] > 0, found


def test_the_kernels_of_a_gru_compile_for_sm_80_and_sm_90_without_spills(tmp_path):
    kernels = compiled(tmp_path, "float16", "512", "140", "gru below", "gru pointers", "head")
    assert len(kernels) == 6
    check_compiled(kernels)


def test_the_heads_of_a_vocabulary_above_256_compile_for_sm_80_and_sm_90_without_spills(tmp_path):
    kernels = compiled(tmp_path, "float16", "512", "400", "head", "head pointers")
    assert len(kernels) == 4
    check_compiled(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("H", "V"), [(512, 140), (1_024, 512)])
def test_every_kernel_compiles_for_sm_80_and_sm_90(precision, H, V, tmp_path):
    kernels = compiled(tmp_path, precision, str(H), str(V))
    assert len(kernels) == 34
    check_compiled(kernels)
