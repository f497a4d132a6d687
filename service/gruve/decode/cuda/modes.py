"""Chooses how to decode on a GPU: the first mode that works.

`triton` runs fused kernels in CUDA graphs, `graph` runs torch operations in CUDA graphs, and `eager` is the reference
backend, one torch operation at a time. `graph` computes no pointers.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Literal

import torch

from gruve.decode import Arithmetic, Backend
from gruve.decode.cuda.backend import CudaBackend, CudaConfig, refuse_pointers
from gruve.decode.cuda.device import Device, GpuDevice
from gruve.decode.cuda.exact import check_exact, check_int8
from gruve.decode.cuda.step import Step
from gruve.decode.cuda.torch_step import TorchStep
from gruve.decode.reference import ReferenceBackend
from gruve.errors import ModelBroken
from gruve.model.repository import Model

log = logging.getLogger(__name__)

CudaMode = Literal["auto", "triton", "graph", "eager"]
MODES: tuple[CudaMode, ...] = ("triton", "graph", "eager")
MIN_CAPABILITY = (8, 0)
TORCH_CONFIG = CudaConfig(sizes=(256, 1_024, 4_096), pieces=(8, 2, 1))
"""Torch operations use tiles of 256 rows, and a graph of them has some hundred nodes a step."""


def cuda_backend(model: Model, slots: int, mode: CudaMode, selection_reason: str, arithmetic: Arithmetic) -> Backend:
    """Returns a backend on the current GPU, in the requested mode or, for `auto`, in the first that works.

    Its `selection_reason` begins with the given one and names the modes that do not work here, with reasons.

    Raises `ModelBroken` if the requested mode does not work, or for `auto` if none does.
    """
    reasons, candidates = [selection_reason], MODES if mode == "auto" else (mode,)
    if mode == "auto" and model.config.pointers is not None:
        reasons.append("graph does not compute pointers")
        candidates = ("triton", "eager")
    for candidate in candidates:
        try:
            return _make(model, slots, candidate, "; ".join([*reasons, f"decoding with {candidate}"]), arithmetic)
        except Exception as error:
            known = isinstance(error, ModelBroken)  # a `ModelBroken` explains itself; others get a trace
            log.warning("%s does not work for this model: %s", candidate, error, exc_info=not known)
            reasons.append(f"{candidate} does not work here: {error}")
    raise ModelBroken("; ".join(reasons))


def make_step(model: Model, mode: CudaMode, device: Device, arithmetic: Arithmetic = "float32") -> Step:
    """Returns the step of mode `triton` or `graph`; raises `ModelBroken` if it does not work here."""
    if mode == "graph":
        return TorchStep(model, device.kind, arithmetic)
    if (reason := triton_unavailable()) is not None:
        raise ModelBroken(reason)
    # Imported late: only CUDA builds of torch bring Triton.
    if arithmetic == "int8":
        int8_step: Step = importlib.import_module("gruve.decode.cuda.triton_int8_step").TritonInt8Step(
            model, device.kind
        )
        return int8_step
    step: Step = importlib.import_module("gruve.decode.cuda.triton_step").TritonStep(model, device.kind)
    return step


def triton_unavailable() -> str | None:
    """Why the fused kernels cannot be used with this installation and GPU, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: it comes with torch's CUDA builds, or pip install 'triton>=3.6,<4'"
    if torch.cuda.is_available() and (found := torch.cuda.get_device_capability()) < MIN_CAPABILITY:
        return f"the GPU's compute capability is {found[0]}.{found[1]}; the kernels need {MIN_CAPABILITY[0]}.0"
    return None


def _make(model: Model, slots: int, mode: CudaMode, selection_reason: str, arithmetic: Arithmetic) -> Backend:
    # TF32 would round the torch operations' operands.
    torch.set_float32_matmul_precision("highest")
    if mode == "eager":
        eager = ReferenceBackend(model, slots, "cuda", selection_reason, arithmetic)
        if arithmetic == "int8":
            check_int8(eager, model)
        return eager
    if mode == "graph":
        refuse_pointers(model)
    device = GpuDevice()
    config = TORCH_CONFIG if mode == "graph" else CudaConfig()
    step = make_step(model, mode, device, arithmetic)
    backend = CudaBackend(model, slots, step, device, selection_reason, config)
    check_exact(backend, model.config)
    if arithmetic == "int8":
        check_int8(backend, model)
    return backend
