"""Plots results. Knows matplotlib, and takes rows in the form of the results' JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gruve.bench.result import Row, Value

OURS_COLOUR, PEER_COLOURS = "#c1440e", ("#6b7a8f", "#8fa3b5", "#aebfcd", "#ccd7e0")


def plot_growth(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second and memory against sessions, active on the left, idle on the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, state in zip(figure.subplots(1, 2), ("active", "idle"), strict=True):
        chosen = [row for row in rows if row["state"] == state]
        sessions = [_number(row["sessions"]) for row in chosen]
        rates = [_number(row["tokens_per_s"]) for row in chosen]
        axes.plot(sessions, rates, "o-", color=OURS_COLOUR)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_ylim(0, 1.1 * max(rates))
        axes.set_xlabel(f"{state} sessions")
        axes.set_ylabel("tokens/s" if state == "active" else "tokens/s of 64 active sessions", color=OURS_COLOUR)
        memory = axes.twinx()
        sizes = [_number(row["rss_mb"]) for row in chosen]
        memory.plot(sessions, sizes, "s--", color=PEER_COLOURS[0])
        memory.set_ylim(0, 1.1 * max(sizes))
        memory.set_ylabel("resident memory, MB", color=PEER_COLOURS[0])
        axes.grid(alpha=0.3)
    figure.savefig(path)


CELL_COLOURS = {"gru": OURS_COLOUR, "gru_before": "#e8a087", "lstm": "#2f6f8f", "elman": "#8a8a8a"}
CELL_NAMES = {"gru": "GRU", "gru_before": "GRU, reset before", "lstm": "LSTM", "elman": "Elman"}


def plot_cells(runs: Sequence[tuple[Row, Sequence[tuple[float, float]]]], path: Path) -> None:
    """Validation loss against updates on the left, against seconds on the right; a line for each run."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_updates, by_seconds = figure.subplots(1, 2, sharey=True)
    named = set()
    for row, curve in runs:
        cell, update_s = str(row["cell"]), _number(row["update_ms"]) / 1e3
        label = None if cell in named else f"{CELL_NAMES[cell]}, {row['hidden']} units"
        named.add(cell)
        losses = [loss for _, loss in curve]
        style = {"color": CELL_COLOURS[cell], "linewidth": 1.2}
        by_updates.plot([updates for updates, _ in curve], losses, label=label, **style)
        by_seconds.plot([updates * update_s for updates, _ in curve], losses, **style)
    by_updates.set_xlabel("updates")
    by_seconds.set_xlabel("seconds of updates, one thread")
    by_updates.set_ylabel("nats per token on the validation part")
    by_updates.legend()
    for axes in (by_updates, by_seconds):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second above, TTFT p99 below, one column per model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure = Figure(figsize=(5 * len(models), 6.5), layout="constrained")
    grid = figure.subplots(2, len(models), squeeze=False)
    for column, model in enumerate(models):
        for line, (key, label) in enumerate((("tokens_per_s", "tokens/s"), ("ttft_ms_p99", "TTFT p99, ms"))):
            axes = grid[line][column]
            _bars(axes, [row for row in rows if row["model"] == model], systems, key)
            axes.set_ylabel(label)
            axes.set_xlabel("streams")
            axes.set_title(str(model) if line == 0 else "")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(systems))
    figure.savefig(path)


def plot_decode(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second against batch size on one thread, one column per size, beside the probed peak."""
    sizes = list(dict.fromkeys((row["layers"], row["hidden"]) for row in rows))
    figure = Figure(figsize=(5 * len(sizes), 4), layout="constrained")
    for axes, (layers, hidden) in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        chosen = [
            row
            for row in rows
            if (row["layers"], row["hidden"], row["threads"], row["cell"]) == (layers, hidden, 1, "gru")
        ]
        for i, name in enumerate(dict.fromkeys(row["backend"] for row in chosen)):
            mine = [row for row in chosen if row["backend"] == name]
            colour = OURS_COLOUR if name == "native" else PEER_COLOURS[(i - 1) % len(PEER_COLOURS)]
            axes.plot(
                [_number(row["batch"]) for row in mine],
                [_number(row["tokens_per_s"]) for row in mine],
                "o-",
                color=colour,
                label=str(name),
            )
        axes.set(
            xscale="log", yscale="log", xlabel="batch", ylabel="tokens/s", title=f"{layers} x {hidden}, one thread"
        )
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)


def plot_overload(rows: Sequence[Row], path: Path) -> None:
    """The time to first token alone and beside many streams on the left, goodput against load on the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    single = [row for row in rows if row["what"] == "neighbour" and row["streams"] == 1]
    labels = ["alone" if row["beside"] == 0 else f"beside {row['beside']} streams" for row in single]
    for i, (key, label) in enumerate((("ttft_ms_p50", "p50"), ("ttft_ms_p99", "p99"))):
        places = [x + (i - 0.5) * 0.4 for x in range(len(single))]
        colour = OURS_COLOUR if i == 0 else PEER_COLOURS[0]
        left.bar(places, [_number(row[key]) for row in single], 0.4, color=colour, label=label)
    left.set_xticks(range(len(single)), labels)
    left.set_ylabel("time to first token, ms")
    left.set_title("a tenant with one stream at a time")
    left.legend(fontsize="small")
    loads = [row for row in rows if row["what"] == "open"]
    offered = [_number(row["load"]) for row in loads]
    right.plot(offered, [_number(row["goodput_tokens_per_s"]) for row in loads], "o-", color=OURS_COLOUR)
    right.set_ylim(bottom=0)
    right.set(xlabel="arrivals, as a multiple of the capacity", ylabel="tokens/s of requests in time", title="goodput")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def plot_gateway(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second on the left and TTFT on the right, of each way to reach a server."""
    named: list[Row] = [{**row, "system": row["way"]} for row in rows if row["what"] == "speed"]
    ways = list(dict.fromkeys(row["system"] for row in named))
    figure = Figure(figsize=(10, 4), layout="constrained")
    grid = figure.subplots(1, 2)
    for axes, (key, label) in zip(grid, (("tokens_per_s", "tokens/s"), ("ttft_ms_p50", "TTFT p50, ms")), strict=True):
        _bars(axes, named, ways, key)
        axes.set_xlabel("streams")
        axes.set_ylabel(label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ways))
    figure.savefig(path)


def plot_gpu(rows: Sequence[Row], path: Path) -> None:
    """Microseconds of a step against batch size on a GPU, one column per size, above its lower bound."""
    steps = [row for row in rows if row["what"] == "step"]
    sizes = list(dict.fromkeys(row["size"] for row in steps))
    figure = Figure(figsize=(5 * max(1, len(sizes)), 4), layout="constrained")
    for axes, size in zip(figure.subplots(1, max(1, len(sizes)), squeeze=False)[0], sizes, strict=False):
        chosen = [row for row in steps if row["size"] == size]
        for i, mode in enumerate(dict.fromkeys(row["mode"] for row in chosen)):
            mine = [row for row in chosen if row["mode"] == mode]
            batches = [_number(row["batch"]) for row in mine]
            colour = OURS_COLOUR if i == 0 else PEER_COLOURS[(i - 1) % len(PEER_COLOURS)]
            axes.plot(batches, [_number(row["step_us"]) for row in mine], "o-", color=colour, label=str(mode))
        floor = {_number(row["batch"]): _number(row["floor_us"]) for row in chosen}
        axes.plot(sorted(floor), [floor[batch] for batch in sorted(floor)], "k:", label="floor")
        axes.set(xlabel="batch", ylabel="microseconds a step", title=str(size), yscale="log")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)


def _bars(axes: Any, rows: Sequence[Row], systems: Sequence[Value], key: str) -> None:
    streams = sorted({int(_number(row["streams"])) for row in rows})
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        values = {row["streams"]: _number(row[key]) for row in rows if row["system"] == system}
        places = [x + (i - (len(systems) - 1) / 2) * width for x in range(len(streams))]
        colour = OURS_COLOUR if i == 0 else PEER_COLOURS[(i - 1) % len(PEER_COLOURS)]
        axes.bar(places, [values.get(s, 0.0) for s in streams], width, color=colour, label=str(system))
        for place, number in zip(places, streams, strict=True):
            if math.isnan(values.get(number, 0.0)):  # no request was answered while it was measured
                axes.annotate("none", (place, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="center")
    axes.set_xticks(range(len(streams)), [str(s) for s in streams])
    axes.set_yscale("log")
    axes.grid(axis="y", alpha=0.3)


def _number(value: Value) -> float:
    return float(value) if value is not None else float("nan")
