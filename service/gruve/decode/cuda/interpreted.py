"""Runs the int8 kernels on a CPU, interpreted by Triton: to compare their bits where there is no GPU. Slow.

A process interprets kernels if `TRITON_INTERPRET` was 1 when it imported Triton; it cannot compile any then.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from gruve.decode import int8
from gruve.decode.cuda.backend import CudaBackend, CudaConfig
from gruve.decode.cuda.device import CpuDevice, Device
from gruve.decode.cuda.modes import triton_unavailable
from gruve.decode.cuda.shapes import Tile
from gruve.errors import ModelBroken
from gruve.model.repository import Model

FEW = CudaConfig(sizes=(4, 16, 64), pieces=(8, 2, 1), stop_entries=1 << 16)


def interpreted_backend(
    model: Model, slots: int, device: Device | None = None, config: CudaConfig = FEW
) -> CudaBackend:
    """The backend of mode `triton` in int8, interpreted, with the smallest tiles; `device` is a CPU.

    Raises `ModelBroken` without Triton, or if this process compiles kernels.
    """
    if (reason := triton_unavailable()) is not None:
        raise ModelBroken(reason)
    # Imported late: only CUDA builds of torch bring Triton.
    if not importlib.import_module("triton").knobs.runtime.interpret:
        raise ModelBroken("Triton compiles kernels in this process; TRITON_INTERPRET=1 must be set when it starts")
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def create_fma(self: object, x: Any, y: Any, z: Any) -> object:  # noqa: ARG001 - a method of Triton's
        values = [torch.tensor(part.data) for part in (x, y, z)]
        return interpreter.TensorHandle(int8.fma(*values).numpy(), z.dtype.scalar)

    # The interpreter's own rounds the product by itself.
    interpreter.InterpreterBuilder.create_fma = create_fma
    int8_step = importlib.import_module("gruve.decode.cuda.triton_int8_step")
    tiling = int8_step.Tiling(Tile(16, 16, 16, 4, 2), Tile(16, 0, 16, 4, 2), "int8")
    device = device or CpuDevice()
    step = int8_step.TritonInt8Step(model, device.kind, tiling)
    return CudaBackend(model, slots, step, device, "interpreted", config)
