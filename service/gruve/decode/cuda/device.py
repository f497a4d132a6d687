"""Where the backend's work is done, in the order it was given: a stream of a GPU, or this very thread.

Knows streams, events, graphs and pinned memory, and is the only one here that does; the CPU's form has none of them, so
that everything above runs and is tested without a GPU.
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
"""Held while a graph is captured: the end of another model's work must not be waited for meanwhile, in any thread."""


class Pending(Protocol):
    """Values on their way from the device."""

    def wait(self) -> NDArray[Any]:
        """The values, once they have come; raises what the work before them raised. The GIL is free meanwhile."""


class Device(Protocol):
    """Does work in the order it was given, perhaps later."""

    kind: torch.device
    description: str
    """Everything about the device that its bits may depend on."""

    def run(self, work: Work) -> None:
        """Does `work` after everything before it."""

    def capture(self, work: Work) -> Work:
        """What does `work` again, as often as it is called through `run`; `work` is done once or more meanwhile."""

    def put(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """Copies values to the device, into `target` or a new tensor; they may be changed afterwards."""

    def take(self, source: Callable[[], Tensor]) -> Pending:
        """Copies what `source` gives to the host, after everything before it."""

    def settle(self) -> None:
        """Returns when all work is done."""


class _Taken:
    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def wait(self) -> NDArray[Any]:
        return self._values


class CpuDevice:
    """This thread: everything is done at once."""

    def __init__(self) -> None:
        self.kind = torch.device("cpu")
        self.description = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"

    def run(self, work: Work) -> None:
        """See `Device`."""
        work()

    def capture(self, work: Work) -> Work:
        """See `Device`."""
        return work

    def put(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """See `Device`."""
        copy = torch.from_numpy(values.copy())
        return copy if target is None else target.copy_(copy)

    def take(self, source: Callable[[], Tensor]) -> Pending:
        """See `Device`."""
        return _Taken(source().clone().numpy())

    def settle(self) -> None:
        """See `Device`."""


class _Coming:
    """Pinned memory that a copy is under way to."""

    def __init__(self, host: Tensor, event: torch.cuda.Event) -> None:
        self._host, self._event = host, event

    def wait(self) -> NDArray[Any]:
        self._event.synchronize()
        values: NDArray[Any] = self._host.numpy()
        return values


class GpuDevice:
    """One stream of the current GPU; what is captured becomes a CUDA graph.

    Not run on a GPU yet.
    """

    def __init__(self) -> None:
        self.kind = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability()
        self.description = f"{torch.cuda.get_device_name()} sm_{major}{minor} CUDA {torch.version.cuda}"
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # One pool for all graphs: they are replayed one after the other and share nothing that outlives a replay.
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: list[torch.cuda.CUDAGraph] = []
        """What could not be captured; the allocator may remember it still."""

    def run(self, work: Work) -> None:
        """See `Device`."""
        with torch.cuda.stream(self._stream):
            work()

    def capture(self, work: Work) -> Work:
        """See `Device`."""
        self.run(work)  # compiles and loads what it launches, which a capture may not
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.kind)
        with _CAPTURING:
            self.settle()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
            except BaseException:
                self._abandon(graph, before)
                raise
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph, before: torch.cuda.Stream) -> None:
        """Leaves a capture that failed, which torch does by half: others may follow, into another pool."""
        torch.cuda.set_stream(before)
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self.kind.index, self._pool)
        self._failed.append(graph)
        self._pool = torch.cuda.graph_pool_handle()

    def put(self, values: NDArray[Any], target: Tensor | None = None) -> Tensor:
        """See `Device`."""
        # torch keeps pinned memory from being used again before the copies out of it are done.
        host = torch.from_numpy(np.ascontiguousarray(values)).pin_memory()
        with torch.cuda.stream(self._stream):
            return host.to(self.kind, non_blocking=True) if target is None else target.copy_(host, non_blocking=True)

    def take(self, source: Callable[[], Tensor]) -> Pending:
        """See `Device`."""
        with torch.cuda.stream(self._stream):
            # Blocking: to wait is not to keep a core busy, of which a server may have two.
            values, event = source(), torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event.record(self._stream)
        return _Coming(host, event)

    def settle(self) -> None:
        """See `Device`."""
        with _CAPTURING:
            torch.cuda.synchronize(self.kind)


def gpu_unavailable_reason() -> str | None:
    """Why torch has no GPU here; None when it has one."""
    if torch.cuda.is_available():
        return None
    return "torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU"


def describe_gpu() -> str:
    """The current GPU in words: its name, its compute capability, and torch's CUDA version."""
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{torch.cuda.get_device_name()}, compute capability {capability}, CUDA {torch.version.cuda}"
