"""Runs work in the order of submission: on a stream of a GPU, or at once on the calling thread.

Knows streams, events, graphs and pinned memory, which nothing else here does. `CpuDevice` needs none of them, so the
code above it runs and is tested without a GPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Work = Callable[[], None]

_CAPTURING = threading.RLock()
"""Held while a graph is captured. No thread may synchronise the device meanwhile, because that would break the
capture."""


class Pending(Protocol):
    """A copy from the device that may not have finished yet."""

    def wait(self) -> NDArray[Any]:
        """Waits for the copy and returns its values.

        Raises the error of any work before it. Releases the GIL while it waits.
        """


class Device(Protocol):
    """Runs work in the order of submission, perhaps later than the call returns."""

    kind: torch.device
    description: str
    """Everything about the device that its bits may depend on; part of the numerics id."""

    def run(self, work: Work) -> None:
        """Runs `work` after everything submitted before it."""

    def capture(self, work: Work) -> Work:
        """Returns a form of `work` that may be passed to `run` any number of times.

        Runs `work` at least once meanwhile.
        """

    def upload(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """Copies values to the device, into `target` or a new tensor. The caller may change `values` afterwards."""

    def download(self, source: Callable[[], Tensor]) -> Pending:
        """Copies the tensor that `source` returns to the host, after everything submitted before it."""

    def synchronize(self) -> None:
        """Returns when all submitted work is done."""


class _Finished:
    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def wait(self) -> NDArray[Any]:
        return self._values


class CpuDevice:
    """The calling thread: everything runs at once."""

    def __init__(self) -> None:
        self.kind = torch.device("cpu")
        self.description = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"

    def run(self, work: Work) -> None:
        """See `Device`."""
        work()

    def capture(self, work: Work) -> Work:
        """See `Device`."""
        return work

    def upload(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """See `Device`."""
        copy = torch.from_numpy(values.copy())
        return copy if target is None else target.copy_(copy)

    def download(self, source: Callable[[], Tensor]) -> Pending:
        """See `Device`."""
        return _Finished(source().clone().numpy())

    def synchronize(self) -> None:
        """See `Device`."""


class _Copying:
    """Pinned memory that a copy is writing to."""

    def __init__(self, host: Tensor, event: torch.cuda.Event) -> None:
        self._host, self._event = host, event

    def wait(self) -> NDArray[Any]:
        self._event.synchronize()
        values: NDArray[Any] = self._host.numpy()
        return values


class GpuDevice:
    """One stream of the current GPU. Captured work becomes a CUDA graph.

    Not run on a GPU yet.
    """

    def __init__(self) -> None:
        self.kind = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability()
        self.description = f"{torch.cuda.get_device_name()} sm_{major}{minor} CUDA {torch.version.cuda}"
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # One pool for all graphs: they run one after the other and share no memory that must outlive a replay.
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: list[torch.cuda.CUDAGraph] = []
        """Graphs whose capture failed. They are kept because the allocator may still refer to them."""

    def run(self, work: Work) -> None:
        """See `Device`."""
        with torch.cuda.stream(self._stream):
            work()

    def capture(self, work: Work) -> Work:
        """See `Device`."""
        self.run(work)  # compiles and loads kernels, which is not allowed during capture
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.kind)
        with _CAPTURING:
            self.synchronize()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
            except BaseException:
                self._abandon(graph, before)
                raise
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph, before: torch.cuda.Stream) -> None:
        """Cleans up after a failed capture, which torch leaves half done, so that later captures work.

        They use another memory pool.
        """
        torch.cuda.set_stream(before)
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self.kind.index, self._pool)
        self._failed.append(graph)
        self._pool = torch.cuda.graph_pool_handle()

    def upload(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """See `Device`."""
        # torch does not reuse pinned memory before the copies from it are done.
        host = torch.from_numpy(np.ascontiguousarray(values)).pin_memory()
        with torch.cuda.stream(self._stream):
            return host.to(self.kind, non_blocking=True) if target is None else target.copy_(host, non_blocking=True)

    def download(self, source: Callable[[], Tensor]) -> Pending:
        """See `Device`."""
        with torch.cuda.stream(self._stream):
            # A blocking event lets the waiting thread sleep. A spinning one would keep a core busy.
            values, event = source(), torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event.record(self._stream)
        return _Copying(host, event)

    def synchronize(self) -> None:
        """See `Device`."""
        with _CAPTURING:
            torch.cuda.synchronize(self.kind)


def gpu_unavailable_reason() -> str | None:
    """Why torch has no GPU here, or None if it has one."""
    if torch.cuda.is_available():
        return None
    return "torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU"


def describe_gpu() -> str:
    """Describes the current GPU: its name, its compute capability, and torch's CUDA version."""
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{torch.cuda.get_device_name()}, compute capability {capability}, CUDA {torch.version.cuda}"
