"""The startup check of the GPU backend, and the choice of its mode."""

from __future__ import annotations

import pytest
import torch

from devices import torch_backend
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.decode.cuda import modes
from gruve.decode.cuda.exact import check_exact
from gruve.errors import InvalidField, ModelBroken
from nets import CELL_NAMES, CELLS, config_of, model_of, pointers_of

cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
MODEL = model_of(config_of(CELLS[0], V=9, H=16))


@cells
def test_the_startup_check_passes_when_bits_do_not_depend_on_the_place(cell):
    model = model_of(config_of(cell, H=17))
    check_exact(torch_backend(model, 20), model.config)


def test_the_startup_check_refuses_a_step_whose_bits_depend_on_the_place():
    backend = torch_backend(MODEL, 20)
    step = backend._step.step

    def unfair(rows, parity, *, plain):
        step(rows, parity, plain=plain)
        rows.states[0, 0, 3] += 1e-7

    backend._step.step = unfair
    with pytest.raises(ModelBroken, match="a row at place 3 of 4 makes other bits than alone"):
        check_exact(backend, MODEL.config)


def test_the_first_gpu_mode_that_works_is_used_and_the_reason_is_given(monkeypatch):
    def make(model, slots, mode, why, arithmetic):
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


@pytest.mark.parametrize("arithmetic", ["float32", "int8"])
def test_a_gpu_decodes_a_model_with_pointers_in_kernels_or_in_the_eager_mode(monkeypatch, arithmetic):
    model = model_of(config_of(CELLS[0], V=9, H=16, pointers=pointers_of(9)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelBroken, match="has pointers, which the mode 'graph' does not compute"):
        choose_backend(model, DecodeConfig(cuda="graph", arithmetic=arithmetic))
    tried = []
    monkeypatch.setattr(modes, "_make", lambda _model, _slots, mode, *_: tried.append(mode) or 1 // (mode == "eager"))
    choose_backend(model, DecodeConfig("cuda", arithmetic=arithmetic))
    assert tried == ["triton", "eager"]


def test_requesting_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidField, match="torch sees no GPU"):
        choose_backend(MODEL, DecodeConfig("cuda"))
