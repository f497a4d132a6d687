"""Measures a server process under a load from client processes, over a window of time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Self

from gruve.bench.figures import Figures, Record, S, figures
from gruve.bench.load.generator import Clients, ClosedLoop, Run, Workload, soon_ns
from gruve.bench.load.processes import Server
from gruve.bench.load.transport import connect
from gruve.bench.machine import process_cpu_s, process_rss_mb
from gruve.decode import Backend
from gruve.decode.choose import DecodeConfig
from gruve.model.repository import Model
from gruve.serve.server import ServeConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """When a load begins, and the later part of it that is measured. Nanoseconds of the monotonic clock."""

    begin_ns: int
    """The begin of the load."""
    measure_ns: int
    """The end of the warm-up."""
    end_ns: int

    @classmethod
    def soon(cls, warm_s: float, seconds: float) -> Self:
        """A window of `seconds` after a warm-up, whose load begins as soon as every client can know of it."""
        begin_ns = soon_ns()
        measure_ns = begin_ns + int(warm_s * S)
        return cls(begin_ns, measure_ns, measure_ns + int(seconds * S))

    def figures(self, records: Sequence[Record]) -> Figures:
        """The figures of what was measured."""
        return figures(records, self.measure_ns, self.end_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """The measurements of one load."""

    figures: Figures
    cpu_s_per_million_tokens: float
    """The CPU time of the measured process; NaN if there was no token."""
    rss_mb: float
    """The memory of the measured process at the end of the window."""
    records: Sequence[Record]
    """Every request, also those outside of the window."""


class ServerAndClients:
    """A server and its client processes, which live as long as `stack`. Benchmarks alternate between several."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        config: ServeConfig,
        client_processes: int,
        choose: Callable[[Model, DecodeConfig], Backend] | None = None,
        *,
        key: str = "",
        ca: bytes | None = None,
    ) -> None:
        """`choose` is that of `gruve.serve.server.serve`. It is sent to another process, so it must be picklable.

        `key` and `ca` are those of `GruveTransport`.
        """
        self.server = stack.enter_context(Server(config, choose))
        self.clients = stack.enter_context(Clients(connect(self.server.target, key, ca=ca), client_processes))

    def closed_loop(self, workload: Workload, sessions: int, warm_s: float, seconds: float) -> Loaded:
        """See the function `closed_loop`."""
        return closed_loop(self.server.pid, self.clients, workload, sessions, warm_s, seconds)


def closed_loop(pid: int, clients: Clients, workload: Workload, sessions: int, warm_s: float, seconds: float) -> Loaded:
    """Runs `sessions` concurrent sessions for `warm_s`, then measures them and a process for `seconds`."""
    window = Window.soon(warm_s, seconds)
    return measure(pid, clients, workload, ClosedLoop(sessions, window.begin_ns, window.end_ns), window)


def measure(pid: int, clients: Clients, workload: Workload, run: Run, window: Window) -> Loaded:
    """Runs a load to its end; measures it, and a process with its descendants, during the window."""
    clients.begin(workload, run)
    _sleep_until(window.measure_ns)
    cpu_s = process_cpu_s(pid)
    _sleep_until(window.end_ns)
    cpu_s, rss_mb = process_cpu_s(pid) - cpu_s, process_rss_mb(pid)
    records = clients.finish()
    found = window.figures(records)
    tokens = found.tokens_per_s * (window.end_ns - window.measure_ns) / S
    return Loaded(found, 1e6 * cpu_s / tokens if tokens else math.nan, rss_mb, records)


def _sleep_until(at_ns: int) -> None:
    time.sleep(max(0, at_ns - time.monotonic_ns()) / S)
