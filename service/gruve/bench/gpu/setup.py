"""The device of `gruve bench gpu`: the GPU, or the CPU for a dry run of the whole command.

A dry run measures nothing: every time is NaN, so that no figure of it can be mistaken for a measurement.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Protocol

import torch

from gruve.bench.result import Value
from gruve.decode import Backend
from gruve.decode.choose import DecodeConfig
from gruve.decode.cuda.backend import CudaBackend, CudaConfig
from gruve.decode.cuda.device import CpuDevice, Device, GpuDevice, Work
from gruve.decode.cuda.modes import TORCH_CONFIG, CudaMode, make_step
from gruve.decode.reference import ReferenceBackend
from gruve.model.repository import Model

SMALL = CudaConfig(sizes=(4, 16), pieces=(4, 2, 1), stop_entries=1 << 16)


class Setup(Protocol):
    """Where a run computes: the GPU, or the CPU for a dry run."""

    kind: torch.device
    measures: bool
    """Whether times are meaningful."""
    decode: DecodeConfig
    """The server's decode configuration."""

    def describe(self) -> dict[str, Value]:
        """Describes the device for the result."""

    def backend(self, model: Model, slots: int, mode: CudaMode) -> Backend:
        """Returns a backend of that mode, or raises the reason why it does not work."""

    def time_s(self, work: Work, run: Callable[[Work], None]) -> float:
        """How long the device takes for `work`, which has run once before. `run` submits it in order."""


class GpuSetup:
    """The current GPU, timed with CUDA events. Not run on a GPU yet."""

    measures = True

    def __init__(self) -> None:
        self.kind = torch.device("cuda")
        self.decode = DecodeConfig("cuda", 4_096, arithmetic="float32")

    def describe(self) -> dict[str, Value]:
        """See `Setup`."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "gpu_multiprocessors": properties.multi_processor_count,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }

    def backend(self, model: Model, slots: int, mode: CudaMode) -> Backend:
        """See `Setup`."""
        return _backend(model, slots, mode, GpuDevice(), TORCH_CONFIG if mode == "graph" else CudaConfig())

    def time_s(self, work: Work, run: Callable[[Work], None]) -> float:
        """See `Setup`: the time between two events on the stream."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        run(begin.record)
        work()
        run(end.record)
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class DrySetup:
    """The CPU at toy sizes: everything runs and nothing is timed."""

    measures = False

    def __init__(self) -> None:
        self.kind = torch.device("cpu")
        self.decode = DecodeConfig("cpu", 16, threads=1, arithmetic="float32")

    def describe(self) -> dict[str, Value]:
        """See `Setup`."""
        return {"gpu": None, "dry_run": True}

    def backend(self, model: Model, slots: int, mode: CudaMode) -> Backend:
        """See `Setup`."""
        return _backend(model, slots, mode, CpuDevice(), SMALL)

    def time_s(self, work: Work, run: Callable[[Work], None]) -> float:  # noqa: ARG002 - nothing is timed
        """See `Setup`."""
        work()
        return math.nan


def _backend(model: Model, slots: int, mode: CudaMode, device: Device, config: CudaConfig) -> Backend:
    torch.set_float32_matmul_precision("highest")
    if mode == "eager":
        return ReferenceBackend(model, slots, device.kind.type)
    return CudaBackend(model, slots, make_step(model, mode, device), device, "a benchmark", config)


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.splitlines()[0].strip() or None
