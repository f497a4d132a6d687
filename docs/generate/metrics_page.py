"""The page of metrics, from the registry of a server that serves nothing yet."""

from __future__ import annotations

from types import SimpleNamespace

from prometheus_client.registry import Collector

from gruve.serve.metrics import Metrics

INTRODUCTION = """# Metrics

Every metric of a server, generated from `service/gruve/serve/metrics.py` and `scraped_metrics.py`. They are served in
Prometheus' text format at `/metrics`, on the port of `--metrics-port`.
[Operating](../operating.md#metrics) says what each tells an operator;
[deploy/](../../deploy/README.md) has rules, alerts and a dashboard.

| metric | type | labels | meaning |
|---|---|---|---|
"""
ELSEWHERE = """
Beside these there are the standard metrics of the process and of Python: `process_*`, `python_info`, `python_gc_*`.
"""
SUFFIX = {"counter": "_total", "histogram": "", "gauge": "", "info": "_info"}


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(row + "\n" for row in sorted(rows())) + ELSEWHERE


def rows() -> list[str]:
    """A line of the table for each metric of a server."""
    metrics = Metrics()
    table = _Table()
    store = SimpleNamespace(store=object(), stored=0, moves={}, behind=0, failing=False)
    metrics.watch_certificate(lambda: 0.0)
    metrics.watch_sessions(table, store)  # type: ignore[arg-type] # only numbers are read of both
    memory = SimpleNamespace(used_bytes=0, limit_bytes=0)
    metrics.watch_models(SimpleNamespace(open=(), loads=0, unloads=0, memory=memory))
    return [row for collector in _collectors(metrics) for row in _rows_of(collector)]


class _Table:
    """A session table with no session."""

    idle_bytes = expired = evicted = 0

    def __len__(self) -> int:
        return 0


def _collectors(metrics: Metrics) -> list[Collector]:
    own = {"PlatformCollector", "ProcessCollector", "GCCollector"}
    return [c for c in metrics.registry._collector_to_names if type(c).__name__ not in own]


def _rows_of(collector: Collector) -> list[str]:
    rows = []
    for family in collector.collect():
        labels = getattr(collector, "_labelnames", None)
        if labels is None:
            labels = sorted({name for sample in family.samples for name in sample.labels})
        if family.type == "info":
            labels = sorted(family.samples[0].labels)
        name = family.name + SUFFIX[family.type]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return rows
