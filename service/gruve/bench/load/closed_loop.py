"""Runs a server and client processes, and measures a closed loop between them over a time window."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from gruve.bench.figures import OBJECTIVE, Figures, Record, S, figures
from gruve.bench.load.generator import Clients, Closed, Workload, soon_ns
from gruve.bench.load.processes import Child, Server
from gruve.bench.load.transport import connect
from gruve.decode import Backend
from gruve.decode.choose import DecodeConfig
from gruve.model.repository import Model
from gruve.serve.server import ServeConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """The measurements of one closed loop."""

    figures: Figures
    cpu_s_per_million_tokens: float
    """The CPU time of the measured process; NaN if there was no token."""
    rss_mb: float
    """The memory of the measured process at the end of the window."""
    records: Sequence[Record]
    """Every request, also those outside of the window."""


class Side:
    """A server and its client processes, which live as long as `stack`. Benchmarks alternate between several sides."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        config: ServeConfig,
        client_processes: int,
        channels: int,
        choose: Callable[[Model, DecodeConfig], Backend] | None = None,
        *,
        key: str = "",
        ca: bytes | None = None,
    ) -> None:
        """`choose` is that of `gruve.serve.server.serve`. It is sent to another process, so it must be picklable.

        `key` and `ca` are those of `GruveTransport`.
        """
        self.server = stack.enter_context(Server(config, choose))
        self.clients = stack.enter_context(Clients(connect(self.server.target, channels, key, ca=ca), client_processes))

    def load(self, workload: Workload, sessions: int, warm_s: float, seconds: float) -> Loaded:
        """See `closed_loop`."""
        return closed_loop(self.server, self.clients, workload, sessions, warm_s, seconds)


def closed_loop(
    measured: Child, clients: Clients, workload: Workload, sessions: int, warm_s: float, seconds: float
) -> Loaded:
    """Runs `sessions` concurrent sessions for `warm_s`, then measures them and a process for `seconds`."""
    begin_ns = soon_ns()
    window_ns = begin_ns + int(warm_s * S)
    end_ns = window_ns + int(seconds * S)
    clients.begin(workload, Closed(sessions, begin_ns, end_ns))
    time.sleep(max(0.0, (window_ns - time.monotonic_ns()) / S))
    cpu_s = measured.cpu_s()
    time.sleep(max(0.0, (end_ns - time.monotonic_ns()) / S))
    cpu_s, rss_mb = measured.cpu_s() - cpu_s, measured.rss_mb()
    records = clients.finish()
    found = figures(records, window_ns, end_ns, OBJECTIVE)
    tokens = found.tokens_per_s * seconds
    return Loaded(found, 1e6 * cpu_s / tokens if tokens else math.nan, rss_mb, records)
