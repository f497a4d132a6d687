"""The native backend keeps the decode contract: prompts, stops, limits, log-probabilities, and what it refuses."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.bench.machine import describe_machine
from gruve.decode import RowStatus
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.decode.native import NativeBackend, library, probe, unavailable_reason
from gruve.decode.native.cores import available_cores, quota_cores
from gruve.errors import InvalidField
from gruve.model.sampling import SamplingParameters
from natively import ISAS, PlainRow, life, native, row_with
from nets import CELLS, config_of, model_of
from requiring import need_program
from row_cases import MODEL, V, rows

__all__ = ["native"]


@settings(max_examples=150)
@given(rows())
def test_a_row_lives_as_the_contract_says(row):
    native, plain = NativeBackend(MODEL, 1, 1), PlainRow(row)
    native.admit(0, row, None)
    reason = RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        block = native.decode([0], [1], 1)
        token, reason = plain.step(native.last_logits(0))
        assert (block.tokens[0, 0], RowStatus(int(block.statuses[0]))) == (token, reason)


@settings(max_examples=60)
@given(st.lists(rows(), min_size=2, max_size=9), st.integers(1, 12))
def test_rows_in_one_call_live_as_each_does_alone(several, steps):
    together = NativeBackend(MODEL, 16, 2)
    for slot, row in enumerate(several):
        together.admit(slot, row, None)
    block = together.decode(range(len(several)), [steps] * len(several), steps)
    for slot, row in enumerate(several):
        solo = NativeBackend(MODEL, 1, 1)
        solo.admit(0, row, None)
        tokens, reason = life(solo, 0, 1)
        taken = block.steps_taken[slot]
        assert block.tokens[:taken, slot].tolist() == tokens[:steps]
        assert (block.tokens[taken:, slot] == -1).all()
        assert block.statuses[slot] == (reason if len(tokens) <= steps else RowStatus.RUNNING)


def test_a_row_takes_no_more_steps_than_its_limit():
    native = NativeBackend(MODEL, 4, 2)
    for slot in range(4):
        native.admit(slot, row_with(max_tokens=99), None)
    block = native.decode([0, 1, 2, 3], [0, 3, 8, 99], 8)
    assert block.steps_taken.tolist() == [0, 3, 8, 8]
    assert (block.tokens[3:, 1] == -1).all()


def test_a_row_that_has_generated_as_many_tokens_as_it_can_count_stays_ended():
    native, most = NativeBackend(MODEL, 1), 2**31 - 1
    native.admit(0, row_with(max_tokens=most, generated=most - 4_096), None)
    for steps in (4_096, 1):
        assert native.decode([0], [steps], steps).statuses[0] == RowStatus.LENGTH


def test_a_prompt_alone_ends_with_its_last_token():
    native = NativeBackend(MODEL, 1)
    native.admit(0, row_with([3, 4, 5], max_tokens=0), None)
    assert life(native, 0, 10) == ([3, 4, 5], RowStatus.LENGTH)


def test_a_penalty_reads_the_last_1024_tokens_wherever_they_stand():
    model = model_of(config_of(CELLS[0], V=40))
    rng = np.random.default_rng(3)
    for position in (5, 1_023, 1_024, 5_000):
        history = rng.integers(0, 40, min(position + 1, 1_024))
        sampling = SamplingParameters(repetition_penalty=3.0, repetition_window=1_024, temperature=0.7)
        row = row_with(history=history, position=position, max_tokens=6, sampling=sampling)
        native, plain = NativeBackend(model, 1), PlainRow(row)
        native.admit(0, row, None)
        for _ in range(6):
            token = native.decode([0], [1], 1).tokens[0, 0]
            assert token == plain.step(native.last_logits(0))[0]


def test_log_probabilities_are_of_the_unmodified_distribution_for_rows_that_request_them():
    native = NativeBackend(MODEL, 3, 2)
    sampling = SamplingParameters(temperature=0.1, top_k=1)
    native.admit(0, row_with([4], max_tokens=9, sampling=sampling, logprobs=3), None)
    native.admit(1, row_with([4], max_tokens=9), None)
    native.admit(2, row_with([4], max_tokens=9, logprobs=V + 2), None)
    block = native.decode([0, 1, 2], [1, 1, 1], 2)
    expected = torch.log_softmax(torch.from_numpy(native.last_logits(0)).double(), 0).numpy()
    got = block.logprobs
    assert abs(got.chosen[0, 0] - expected[4]) < 1e-6
    assert got.top_ids[0, 0, :3].tolist() == np.argsort(-expected, kind="stable")[:3].tolist()
    assert np.abs(got.top[0, 0, :3] - np.sort(expected)[::-1][:3]).max() < 1e-6
    assert sorted(got.top_ids[0, 2, :V]) == list(range(V))
    assert np.isnan(got.chosen[:, 1]).all()
    assert np.isnan(got.chosen[1]).all()
    assert (got.top_ids[0, 2, V:] == -1).all()


@pytest.mark.parametrize(
    ("slots", "threads", "complaint"), [(0, 1, "slots 0"), (1, 0, "threads 0"), (1, -1, "threads -1"), (1, 257, "257")]
)
def test_a_backend_out_of_bounds_is_refused(slots, threads, complaint):
    with pytest.raises(ValueError, match=complaint):
        NativeBackend(MODEL, slots, threads)


def test_a_second_caller_gets_busy():
    native = NativeBackend(MODEL, 64, 1)
    for slot in range(64):
        native.admit(slot, row_with(max_tokens=4_096), None)

    def decode():
        while True:
            with contextlib.suppress(RuntimeError):  # a snapshot below may be the first to hold slot 0
                return native.decode(range(64), [4_096] * 64, 4_096)

    caller = threading.Thread(target=decode)
    caller.start()
    refused = 0
    while caller.is_alive():
        try:
            native.snapshot(0)
        except RuntimeError as error:
            refused += "in use by another thread" in str(error)
    caller.join()
    assert refused > 0


def test_closing_ends_the_threads_and_what_is_closed_is_refused():
    before = threads_of_this_process()
    native = NativeBackend(MODEL, 1, 5)
    begun = threads_of_this_process() - before
    assert len(begun) >= 4  # other tests may have left threads that begin or end now
    native.close()
    native.close()
    assert len(begun & threads_of_this_process()) <= len(begun) - 4
    with pytest.raises(ValueError, match="no decoder, or it was closed"):
        native.snapshot(0)


def threads_of_this_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_a_forked_child_decodes_on_alone_and_leaves_the_parent_undisturbed():
    model = model_of(config_of(CELLS[0], V=V, H=256, L=3))
    native = NativeBackend(model, 2, 3)
    for slot in (0, 1):
        native.admit(slot, row_with(max_tokens=60), None)
    first = life(native, 0, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
        child = os.fork()
    if child == 0:
        same = life(native, 1, 60) == first
        native.close()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert life(native, 1, 60) == first


def test_it_says_why_it_cannot_be_used(monkeypatch, tmp_path):
    assert unavailable_reason() is None
    with pytest.raises(
        InvalidField, match="'sse9' is not avx512vnni, avx512, zen4, avxvnni, avx2, dotprod, neon or portable"
    ):
        NativeBackend(MODEL, 1, isa="sse9")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libgruve_native.so")
    assert "was not built" in unavailable_reason()


def test_a_library_of_another_version_or_layout_is_refused(monkeypatch):
    built = library.ABI_VERSION
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    with pytest.raises(ImportError, match=f"its ABI version is {built}, this package's 99"):
        library.Library(library.LIBRARY)
    monkeypatch.undo()
    monkeypatch.setattr(library, "STRUCTS", (*library.STRUCTS[:3], library.Call, library.NativeRow))
    with pytest.raises(ImportError, match="its Call has"):
        library.Library(library.LIBRARY)


def test_it_says_what_it_runs_on():
    native = NativeBackend(MODEL, 1, 2, selection_reason="no GPU", isa="portable")
    assert (native.name, native.isa, native.selection_reason) == ("native", "portable", "no GPU (portable, 2 threads)")
    assert NativeBackend(MODEL, 1, 2, isa="portable", arithmetic="int8").selection_reason.endswith(
        "(portable, 2 threads, int8)"
    )
    assert available_cores() >= 1


def test_this_cpu_gets_its_fastest_kernels():
    machine = describe_machine()
    amd, wide = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii"), machine["isa"] == "avx512"
    zen4 = amd and wide and machine["family"] == "25"
    vnni = {"avx512": "avx512vnni", "avx2": "avxvnni"}.get(machine["isa"])
    expected = "zen4" if zen4 else vnni if vnni in ISAS else machine["isa"] if machine["isa"] in ISAS else "portable"
    assert library.chosen_isa() == expected


def test_kernels_that_multiply_otherwise_than_plain_integers_are_not_used(monkeypatch, caplog):
    built, chosen = library.library(), library.chosen_isa.__wrapped__
    assert all(built.multiplies_exactly(isa) for isa in ISAS)
    fastest = built.isa()
    monkeypatch.setattr(library.Library, "multiplies_exactly", lambda _, isa: isa != fastest)
    with caplog.at_level("WARNING"):
        assert chosen() == ([isa for isa in ISAS if isa != fastest] or ["portable"])[0]
    assert caplog.messages[0].startswith(
        f"{fastest} gives int8 products other than those of plain integers on this CPU"
    )
    with pytest.raises(InvalidField, match=f"'{fastest}' gives int8 products other than"):
        chosen(fastest)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 1.5),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000"}, 0.5),
        ("4:cpu:/a\n", {"cpu.max": "100000 100000"}, math.inf),
        ("0::/\n", {"cpu.max": ""}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_the_time_that_a_container_has_is_counted_in_cores(own, files, cores, tmp_path):
    groups = tmp_path / "cgroup"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert quota_cores(groups, tmp_path / "own") == cores


def test_int8_is_chosen_with_every_backend_of_a_cpu():
    native, reference = (
        choose_backend(MODEL, DecodeConfig("cpu", 1, torch.get_num_threads(), native=wanted, arithmetic="int8"))
        for wanted in (True, False)
    )
    assert (native.name, reference.name) == ("native", "reference")
    assert native.selection_reason.endswith(", int8)")
    assert reference.selection_reason.endswith(" (int8)")
    assert native.numerics_id == reference.numerics_id


@pytest.mark.parametrize("size_bytes", [2**64 - 4_096, 2**63, 0])
def test_a_block_that_no_machine_has_is_not_read(size_bytes):
    assert probe.read_bytes_per_s("portable", size_bytes, 0, 0.01) == 0.0


def test_only_the_objects_made_for_them_hold_wide_instructions():
    objdump = need_program("objdump", "apt-get install binutils")
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", library.LIBRARY], capture_output=True, text=True)
    name, wide = "", {"%ymm": set(), "%zmm": set()}
    for line in listing.stdout.splitlines():
        name = line if line.endswith(">:") else name
        for register, names in wide.items():
            if register in line:
                names.add(name)
    assert all("avx2" in name or "avx512" in name for name in wide["%ymm"])
    assert all("avx512" in name for name in wide["%zmm"])
    assert wide["%ymm"] or "avx2" not in ISAS
