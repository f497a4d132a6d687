"""`gruve bench gpu` without a GPU: refused, but a dry run, which measures nothing, runs to its end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from devices import need_triton, torch_backend
from gruve.bench.gpu.measure import NO_TIME, GpuBenchConfig, held, run_gpu
from gruve.bench.gpu.proofs import Extent, prove_draws, prove_mixes, prove_oracle
from gruve.bench.plots import plot_gpu
from gruve.bench.result import Result
from gruve.decode.cuda.memory import OUTBOX
from nets import CELLS, config_of, model_of

DRY = GpuBenchConfig.dry()
SMALL = Extent(tokens=3, steps=4, probes=3, mixes=(3, 5))
MODEL = model_of(config_of(CELLS[0], V=12, H=16))


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gruve.cli", "bench", "gpu", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_and_fails():
    ended = bench(CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "torch sees no GPU" in ended.stderr


@pytest.mark.slow
def test_a_dry_run_goes_through_everything_and_gives_no_time():
    need_triton()
    ended = bench("--dry-run", TRITON_INTERPRET="1")
    result = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    assert (result["benchmark"], result["machine"]["dry_run"], result.get("skipped")) == ("gpu-dry-run", True, None)
    assert {row["what"] for row in result["rows"]} == {
        "oracle",
        "draws",
        "mixes",
        "roofline",
        "step",
        "start",
        "server",
    }
    assert all(value is None for row in result["rows"] for key, value in row.items() if key in TIMES)


TIMES = {"step_us", "tokens_per_s", "floor_us", "times_floor", "seconds", "tflop_per_s", "tb_per_s", "ttft_ms_p99"}


def test_what_fails_is_named_and_the_rest_goes_on():
    config = dataclasses.replace(DRY, modes=("triton", "graph"), sessions=(), cells=(), extent=SMALL)
    config = dataclasses.replace(config, batches=(2,))
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gruve.decode.cuda.modes.triton_unavailable", lambda: "there is none")
        result = run_gpu(config, lines.append, dry=True)
    assert {row["why"] for row in result.skipped} == {"ModelBroken: there is none"}
    assert [row["ok"] for row in result.rows if "ok" in row] == [True, True, True]
    assert not held(result)


def test_nothing_new_is_begun_when_time_is_up():
    config = dataclasses.replace(DRY, time_limit_s=-1.0)
    result = run_gpu(config, lambda _: None, dry=True)
    assert {row["why"] for row in result.skipped} == {"no time was left"}
    assert result.rows == []
    assert not held(result)


def test_a_way_that_was_not_proved_or_not_served_does_not_hold():
    proved, slow = {"mode": "triton", "ok": True}, {"what": "step", "mode": "triton"}
    left_out = [
        ({**slow, "why": NO_TIME}, True),
        ({**slow, "why": "RuntimeError: lost"}, False),
        ({"what": "proof", "mode": "triton", "why": NO_TIME}, False),
        ({"what": "server", "why": "ChildProcessError: not ready"}, False),
        ({"what": "step", "mode": "torch.compile", "why": "RuntimeError: slow"}, True),
    ]
    for row, holds in left_out:
        assert held(Result("gpu", {}, {}, [proved], [row])) is holds
    assert not held(Result("gpu", {}, {}, [{**proved, "ok": False}]))


def broken(change):
    """A backend that applies `change` to its rows after every step."""
    backend = torch_backend(MODEL, 8)
    step = backend._step.step

    def wrong(rows, parity, *, plain):
        step(rows, parity, plain=plain)
        change(rows)

    backend._step.step = wrong
    return backend


def drift(rows) -> None:
    rows.states.add_(1e-2)


def other_token(rows) -> None:
    rows.outbox[OUTBOX] = (rows.outbox[OUTBOX] + 1) % 12


def place_matters(rows) -> None:
    rows.states[:, :, 1] += 1e-6


@pytest.mark.parametrize(
    ("prove", "change"),
    [
        (lambda backend, rng: prove_oracle(backend, MODEL, SMALL, rng, 1e-4), drift),
        (lambda backend, rng: prove_draws(backend, MODEL.config, SMALL, rng), other_token),
        (lambda backend, rng: prove_mixes(backend, MODEL.config, SMALL, rng), place_matters),
    ],
    ids=["oracle", "draws", "mixes"],
)
def test_a_proof_holds_for_what_is_right_and_fails_for_what_is_not(prove, change):
    rng = np.random.default_rng(1)
    assert prove(torch_backend(MODEL, 8), rng)["ok"]
    assert not prove(broken(change), rng)["ok"]


def test_a_plot_has_a_line_for_every_way(tmp_path):
    rows = [
        {"what": "step", "mode": mode, "size": "3x512", "batch": batch, "step_us": 20.0 + batch, "floor_us": 4.0}
        for mode in ("triton", "nn.GRU")
        for batch in (1, 64)
    ]
    plot_gpu([{"what": "roofline"}, *rows], tmp_path / "gpu.svg")
    assert (tmp_path / "gpu.svg").stat().st_size > 1_000
