"""`gruve bench cells`, run once at a small size: equal parameters, and the best learning rate gets the other seeds."""

from __future__ import annotations

import json

import pytest

from gruve.bench.cells import CellsBenchConfig, hidden_size, run_cells, training_config
from gruve.bench.synthetic import CELLS
from tunes import write_books

TEXT = "the wind blows where it wishes, and you hear its sound.\n" * 60


def rows_of(config: CellsBenchConfig) -> list[dict]:
    return json.loads(run_cells(config, lambda _: None).to_json())["rows"]


@pytest.mark.slow
def test_each_cell_is_trained_with_every_rate_and_the_best_rate_with_more_seeds(tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text(TEXT)
    rates, plot = (1e-4, 2e-2), tmp_path / "cells.svg"
    config = CellsBenchConfig(corpus, ("gru", "elman"), 2_000, 6, 2, rates, seeds=2, plot=plot)
    rows = rows_of(config)
    asked = [(row["cell"], row["learning_rate"], row["seed"]) for row in rows]
    first = [(cell, rate, 1) for rate in rates for cell in ("gru", "elman")]
    assert asked == [*first, ("gru", 2e-2, 2), ("elman", 2e-2, 2)]
    assert [row["chosen"] for row in rows] == [rate == 2e-2 for _, rate, _ in asked]
    for row in rows:
        assert row["parameters"] <= 2_000
        assert 0 < row["validation_nats"] < 5
        assert row["test_nats"] is None
        assert row["update_ms"] > 0 < row["step_us"]
    assert plot.stat().st_size > 1_000


@pytest.mark.slow
def test_tunes_are_measured_on_their_test_part(tmp_path):
    write_books(tmp_path)
    (row,) = rows_of(CellsBenchConfig(tmp_path, ("lstm",), 3_000, 2, 1, (1e-2,), seeds=1))
    assert 0 < row["validation_nats"] != row["test_nats"] > 0


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_as_large_as_its_parameters_allow(cell):
    config = CellsBenchConfig(parameters=50_000)

    def parameters(hidden: int) -> int:
        return training_config(config, cell, hidden, 1e-3, 1).architecture.model_config(66).parameter_count()

    hidden = hidden_size(config, cell, 66)
    assert parameters(hidden) <= 50_000 < parameters(hidden + 1)
    assert hidden_size(CellsBenchConfig(parameters=1), cell, 66) == 8
