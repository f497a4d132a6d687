"""`gruve bench decode` and `bits`, on models so small that they take no time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from devices import need_triton
from gruve.bench.bits import BitsBenchConfig, generate, run_bits
from gruve.bench.decode.measure import DecodeBenchConfig, run_decode
from gruve.bench.decode.roofline import probe_roofline
from gruve.bench.decode.steppers import Absent, TorchStepper, make_stepper, require_same_model
from gruve.bench.synthetic import Size, make_model
from gruve.decode.native import unavailable_reason
from gruve.decode.reference import ReferenceBackend
from gruve.model.oracle import Oracle

TINY = Size(2, 16)
ROW = {
    "backend",
    "cell",
    "layers",
    "hidden",
    "batch",
    "threads",
    "step_ms",
    "tokens_per_s",
    "gflops",
    "fma_peak_gflops",
}
QUICK = DecodeBenchConfig(
    sizes=(TINY,), batches=(1, 65), threads=(1,), other_cells=("lstm",), other_batches=(2,), rounds=2, seconds=0.001
)
needs_native = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def test_a_decode_row_is_complete_and_its_figures_agree():
    result = json.loads(run_decode(QUICK, lambda _: None).to_json())
    assert result["benchmark"] == "decode"
    for row in result["rows"]:
        assert set(row) >= ROW
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["batch"] / row["step_ms"], rel=1e-4)
    measured = {(row["backend"], row["cell"], row["batch"]) for row in result["rows"]}
    assert {("reference", "gru", 65), ("torch", "lstm", 2)} <= measured


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("torch", 1e-4),
        ("torch_int8", 0.5),
        ("onnxruntime", 1e-4),
        ("onnxruntime_int8", 0.5),
        ("openvino", 1e-4),
        ("openvino_int8", 0.5),
    ],
)
def test_a_peer_computes_the_model_it_is_compared_on(tmp_path, name, bound):
    model = make_model(tmp_path / "m", TINY)
    try:
        peer = make_stepper(name, model, 3, 1)
    except Absent as absent:
        pytest.skip(str(absent))
    oracle = Oracle(model.config, model.weights)
    for token in (0, 3, 100):
        assert np.abs(peer.logits(token) - oracle.step(token)).max() < bound


def test_a_peer_that_is_not_installed_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr("gruve.bench.decode.steppers.onnx", None)
    config = DecodeBenchConfig(
        sizes=(TINY,), batches=(1,), threads=(1,), backends=("onnxruntime",), other_cells=(), rounds=1
    )
    (left_out,) = run_decode(config, lambda _: None).skipped
    assert left_out["why"] == "onnx is not installed: pip install 'gruve[bench]'"


@needs_native
def test_what_bounds_a_step_in_int8_is_the_reading_of_its_own_bytes():
    config = dataclasses.replace(QUICK, batches=(1,), other_cells=(), backends=("native", "native_int8"))
    float32, int8 = run_decode(config, lambda _: None).rows
    assert int8["weight_stream_ms"] == pytest.approx(float32["weight_stream_ms"] / 2)
    assert math.isnan(int8["of_peak"])
    assert float32["of_peak"] > 0


def test_a_peer_is_compared_after_every_token(tmp_path):
    model = make_model(tmp_path / "m", TINY)
    peer, calls = make_stepper("torch", model, 3, 1), itertools.count()
    require_same_model(peer.logits, model, 1e-4)
    with pytest.raises(Absent, match="another model"):
        require_same_model(lambda token: peer.logits(token) + (next(calls) == 1), model, 1e-4)


def test_a_peer_that_computes_something_else_is_no_peer(monkeypatch):
    monkeypatch.setattr(TorchStepper, "logit_bound", -1.0)
    config = DecodeBenchConfig(sizes=(TINY,), batches=(1,), threads=(1,), backends=("torch",), other_cells=(), rounds=1)
    (left_out,) = run_decode(config, lambda _: None).skipped
    assert "computes another model" in str(left_out["why"])


@needs_native
def test_two_threads_are_probed_together_and_the_peak_is_above_nothing():
    roofline = probe_roofline(1 << 16, 2)
    assert roofline.fma_gflops > 0.0
    assert roofline.read_gb_s > 0.0
    assert roofline.clock_ghz > 0.0


def test_a_digest_is_printed_for_every_cell():
    result = run_bits(BitsBenchConfig(size=Size(1, 16), tokens=100, interpreted_tokens=0), lambda _: None)
    assert {row["cell"] for row in result.rows} == {"gru", "gru_before", "lstm", "elman"}
    assert all(len(str(row["digest"])) == 16 and row["tokens"] == 100 for row in result.rows)


@needs_native
def test_every_instruction_set_of_this_cpu_gives_the_same_digest():
    result = run_bits(BitsBenchConfig(size=Size(1, 16), tokens=200, interpreted_tokens=0), lambda _: None)
    natives = [row for row in result.rows if row["backend"] == "native"]
    assert len({(row["cell"], row["arithmetic"], row["digest"]) for row in natives}) == 8
    assert len({(row["cell"], row["digest"]) for row in result.rows if row["arithmetic"] == "int8"}) == 4


def test_interpreted_kernels_have_the_digest_of_the_reference():
    need_triton()
    config = BitsBenchConfig(size=Size(1, 16), cells=("gru", "lstm"), tokens=20, interpreted_tokens=10)
    rows = [row for row in run_bits(config, lambda _: None).rows if row["tokens"] == 10]
    assert [(row["cell"], row["backend"]) for row in rows] == [
        (cell, backend) for cell in config.cells for backend in ("cuda", "reference")
    ]
    assert len({(row["cell"], row["digest"]) for row in rows}) == 2


def test_digested_tokens_are_distinct_sequences(tmp_path):
    tokens = generate(ReferenceBackend(make_model(tmp_path / "m", TINY), 10), 30)
    assert tokens.shape == (30, 10)
    assert len({tuple(column) for column in tokens.T.tolist()}) == 10
