"""For tests of the GPU backend: a device that runs late, and backends that run on the CPU."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from gruve.decode.cuda.backend import CudaBackend, CudaConfig
from gruve.decode.cuda.device import CpuDevice
from gruve.decode.cuda.interpreted import interpreted_backend
from gruve.decode.cuda.torch_step import TorchStep
from requiring import need

SMALL = CudaConfig(sizes=(4, 16, 64), pieces=(8, 2, 1), stop_entries=1 << 16)
SHARED_BYTES = 99 * 1024
"""The shared memory of a block on the smallest supported GPUs, sm_86 and sm_89, in bytes."""
SPILLED_BYTES = 32


class LateDevice(CpuDevice):
    """A device that runs no work before a result is waited for, like a GPU that lags behind its host.

    It reveals code that changes host memory before the device has read it, or reads a result too early.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = collections.deque()
        self.captured = 0

    def run(self, work):
        self.queue.append(work)

    def capture(self, work):
        self.captured += 1
        self.run(work)  # as a GPU does before it captures
        self.synchronize()
        return work

    def upload(self, values, target=None):
        copy = torch.from_numpy(values.copy())
        if target is None:
            target = torch.full_like(copy, 99)
        self.run(lambda: target.copy_(copy))
        return target

    def download(self, source):
        coming = _Copying(self)
        self.run(lambda: coming.arrive(source().clone().numpy()))
        return coming

    def synchronize(self):
        with torch.inference_mode():
            while self.queue:
                self.queue.popleft()()


class _Copying:
    def __init__(self, device: LateDevice) -> None:
        self._device, self._values = device, None

    def arrive(self, values) -> None:
        self._values = values

    def wait(self) -> np.ndarray:
        while self._values is None:
            with torch.inference_mode():
                self._device.queue.popleft()()
        return self._values


def torch_backend(model, slots=5, device=None, config=SMALL, arithmetic="float32") -> CudaBackend:
    """The backend of mode `graph`, on the CPU."""
    device = device or CpuDevice()
    return CudaBackend(model, slots, TorchStep(model, device.kind, arithmetic), device, "a test", config)


def triton_backend(model, slots=5, device=None, precision="float16", config=SMALL) -> CudaBackend:
    """The backend of mode `triton`, interpreted, with the smallest tiles."""
    from gruve.decode.cuda.shapes import Tile
    from gruve.decode.cuda.triton_step import Tiling, TritonStep

    device = device or CpuDevice()
    if precision == "int8":
        return interpreted_backend(model, slots, device, config)
    tiling = Tiling(Tile(16, 16, 16, 4, 2), Tile(16, 0, 16, 4, 2), precision)
    return CudaBackend(model, slots, TritonStep(model, device.kind, tiling), device, "a test", config)


def compiled(cache: Path, *arguments: str) -> list[dict]:
    """Returns the output of `compiling.py`."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    program = Path(__file__).parent / "compiling.py"
    result = subprocess.run(
        [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def need_triton() -> None:
    """Skips the test without Triton, or fails it if GRUVE_REQUIRE names triton. conftest.py turns on interpretation."""
    present = importlib.util.find_spec("triton") is not None
    need("triton", present=present, install="pip install 'triton>=3.6,<4'")
