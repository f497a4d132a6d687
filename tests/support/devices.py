"""What the tests of the GPU path share: a device that is late, backends on this CPU, and Triton as an interpreter."""

from __future__ import annotations

import collections
import importlib.util

import numpy as np
import torch

from gruve.decode.cuda.backend import CudaBackend, CudaConfig
from gruve.decode.cuda.device import CpuDevice
from gruve.decode.cuda.torch_step import TorchStep
from requiring import need

SMALL = CudaConfig(sizes=(4, 16, 64), pieces=(8, 2, 1), stop_entries=1 << 16)


class LateDevice(CpuDevice):
    """Does nothing before somebody waits for it, and then everything before that: a GPU that lags behind its host.

    Whoever changes on the host what the device has yet to read, or reads what has yet to come, is found out here.
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
        self.settle()
        return work

    def put(self, values, target=None):
        copy = torch.from_numpy(values.copy())
        if target is None:
            target = torch.full_like(copy, 99)
        self.run(lambda: target.copy_(copy))
        return target

    def take(self, source):
        coming = _Coming(self)
        self.run(lambda: coming.arrive(source().clone().numpy()))
        return coming

    def settle(self):
        with torch.inference_mode():
            while self.queue:
                self.queue.popleft()()


class _Coming:
    def __init__(self, device: LateDevice) -> None:
        self._device, self._values = device, None

    def arrive(self, values) -> None:
        self._values = values

    def wait(self) -> np.ndarray:
        while self._values is None:
            with torch.inference_mode():
                self._device.queue.popleft()()
        return self._values


def torch_backend(model, slots=5, device=None, config=SMALL) -> CudaBackend:
    """What `graph` is on a GPU, on this CPU."""
    device = device or CpuDevice()
    return CudaBackend(model, slots, TorchStep(model, device.kind), device, "a test", config)


def triton_backend(model, slots=5, device=None, precision="float16", config=SMALL) -> CudaBackend:
    """What `triton` is on a GPU, interpreted, with tiles as small as they can be."""
    from gruve.decode.cuda.triton_step import Tile, Tiling, TritonStep

    device = device or CpuDevice()
    tiling = Tiling(Tile(16, 16, 16, 4, 2), Tile(16, 0, 16, 4, 2), precision)
    return CudaBackend(model, slots, TritonStep(model, device.kind, tiling), device, "a test", config)


def need_triton() -> None:
    """Skips, or fails where GRUVE_REQUIRE names triton; conftest.py has it interpret."""
    present = importlib.util.find_spec("triton") is not None
    need("triton", present=present, install="pip install 'triton>=3.6,<4'")
