"""Metrics that are read at each scrape: sessions, the session store, and models that are loaded.

A scrape runs on a thread of its own, so it reads numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gruve.sessions.table import SessionTable


class PersistenceState(Protocol):
    """What the metrics read from `Persistence`."""

    @property
    def store(self) -> object | None:
        """The store; None if sessions live in memory alone."""

    @property
    def stored(self) -> int:
        """How many sessions the store has."""

    @property
    def moves(self) -> Mapping[str, int]:
        """Sessions that left memory or came back, by reason."""

    @property
    def behind(self) -> int:
        """How many sessions have something that is not in the store."""

    @property
    def failing(self) -> bool:
        """Whether the store fails."""


class MemoryState(Protocol):
    """What the metrics read from `ModelMemory`."""

    limit_bytes: int
    used_bytes: int


class LoadedModels(Protocol):
    """What the metrics read from `LoadedHosts`."""

    loads: int
    unloads: int

    @property
    def open(self) -> Sized:
        """The versions of models that are loaded."""

    @property
    def memory(self) -> MemoryState | None:
        """The limit on their memory; None without one."""


class ModelCollector(Collector):
    """Collects the metrics of loading and unloading models."""

    def __init__(self, models: LoadedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Reads the numbers."""
        models, memory = self._models, self._models.memory
        yield GaugeMetricFamily("gruve_models_loaded", "Versions of models that are loaded.", len(models.open))
        yield CounterMetricFamily("gruve_model_loads", "Versions of models that were loaded.", models.loads)
        yield CounterMetricFamily("gruve_model_unloads", "Versions of models that were unloaded.", models.unloads)
        if memory is not None:
            yield GaugeMetricFamily(
                "gruve_model_memory_bytes",
                "Memory that the loaded models take.",
                memory.used_bytes,
                unit="bytes",
            )
            yield GaugeMetricFamily(
                "gruve_model_memory_limit_bytes", "The limit on the memory of models.", memory.limit_bytes, unit="bytes"
            )


class SessionCollector(Collector):
    """Collects the metrics of the session table and the store."""

    def __init__(self, sessions: SessionTable, persistence: PersistenceState) -> None:
        self._table = sessions
        self._persistence = persistence

    def collect(self) -> Iterator[Metric]:
        """Reads the numbers."""
        where = GaugeMetricFamily("gruve_sessions", "Sessions, by where they are.", labels=["where"])
        where.add_metric(["memory"], len(self._table))
        if self._persistence.store is not None:
            where.add_metric(["store"], self._persistence.stored)
            yield GaugeMetricFamily(
                "gruve_store_behind", "Sessions with changes that are not in the store.", self._persistence.behind
            )
            yield GaugeMetricFamily(
                "gruve_store_up", "1 while the session store works.", int(not self._persistence.failing)
            )
        yield where
        yield GaugeMetricFamily(
            "gruve_session_memory_bytes",
            "What idle sessions take of their budget.",
            self._table.idle_bytes,
            unit="bytes",
        )
        moves = CounterMetricFamily(
            "gruve_session_moves", "Sessions that left memory or came back, by reason.", labels=["reason"]
        )
        moves.add_metric(["expired"], self._table.expired)
        moves.add_metric(["evicted"], self._table.evicted)
        for reason, count in sorted(self._persistence.moves.items()):
            moves.add_metric([reason], count)
        yield moves
