"""Rows, calls and slots that every backend with compiled steps must refuse, and a slot that was released."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from devices import torch_backend
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.stops import MATCHED, compile_stops
from gruve.model.sampling import SamplingParameters
from natively import life, row_with
from requiring import need
from row_cases import MODEL, TEXTS, V


@pytest.fixture(params=["native", "cuda"])
def make(request):
    """Makes a backend of a model with a number of slots. The backend of GPUs runs on the CPU."""
    if request.param == "native":
        need("native", present=unavailable_reason() is None, install="make install")
        return NativeBackend
    return torch_backend


def test_a_released_slot_is_empty_and_keeps_its_state_until_it_is_reused(make):
    backend = make(MODEL, 1)
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
        ({"position": 1 << 64}, "position 18446744073709551616"),
        ({"end_id": V}, "end_id 9"),
        ({"end_id": -1}, "end_id -1"),
        ({"max_tokens": -1}, "max_tokens -1"),
        ({"max_tokens": (1 << 32) + 3}, "max_tokens 4294967299"),
        ({"min_tokens": -5}, "min_tokens -5"),
        ({"generated": -1}, "generated -1"),
        ({"logprobs": 1_025}, "logprobs 1025"),
        ({"logprobs": -1}, "logprobs -1"),
        ({"stop_state": 1}, "stop_state 1"),
        ({"sampling": SamplingParameters(logit_bias=((V, 1.0),))}, "logit_bias token 9"),
        ({"stops": compile_stops(("a",), (), ("a",) * (V + 1))}, "stop table of shape"),
    ],
)
def test_a_row_out_of_bounds_is_refused_and_the_slot_stays_as_it_was(make, changes, complaint):
    backend = make(MODEL, 1)
    backend.admit(0, row_with(max_tokens=3), None)
    with pytest.raises(ValueError, match=complaint):
        backend.admit(0, dataclasses.replace(row_with(), **changes), None)
    undisturbed = make(MODEL, 1)
    undisturbed.admit(0, row_with(max_tokens=3), None)
    assert life(backend, 0, 3) == life(undisturbed, 0, 3)


@pytest.mark.parametrize(("entry", "state"), [(2, 2), (-1, -1 - MATCHED), (1 << 29, 1 << 29), (-(1 << 31), -(1 << 31))])
def test_a_stop_table_with_a_next_state_out_of_bounds_is_refused(make, entry, state):
    stops = compile_stops(("a",), (), TEXTS)
    stops.table[1, 3] = entry
    with pytest.raises(ValueError, match=f"a stop table's next state {state} is not between 0 and 1"):
        make(MODEL, 1).admit(0, row_with(stops=stops), None)


@pytest.mark.parametrize(
    ("slots", "limits", "steps", "complaint"),
    [
        ([0, 0], [1, 1], 1, "slot 0 is given twice"),
        ([5], [1], 1, "slot 5 is not between 0 and 4"),
        ([-1], [1], 1, "slot -1 is not between"),
        ([4], [1], 1, "slot 4 holds no sequence"),
        ([0], [-1], 1, "limit -1"),
        ([0], [1], 0, "steps 0"),
        ([0], [1], 4_097, "steps 4097"),
        ([0], [1, 1], 1, "1 slots and 2 limits"),
        ([], [], 1, "0 slots"),
        (range(65), [1] * 65, 1, "65 slots"),
    ],
)
def test_a_call_out_of_bounds_is_refused(make, slots, limits, steps, complaint):
    backend = make(MODEL, 5)
    backend.admit(0, row_with(), None)
    with pytest.raises(ValueError, match=complaint):
        backend.decode(slots, limits, steps)


def test_a_state_of_the_wrong_shape_or_an_unknown_slot_is_refused(make):
    backend = make(MODEL, 1)
    with pytest.raises(ValueError, match=r"a state of shape \(1, 2, 17\)"):
        backend.admit(0, row_with(), np.zeros((1, 2, 17), dtype=np.float32))
    for refused in (backend.snapshot, backend.release, lambda slot: backend.admit(slot, row_with(), None)):
        with pytest.raises(ValueError, match="slot 1 is not between 0 and 0"):
            refused(1)
