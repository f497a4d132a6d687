"""`gruve bench overload`, run once at a small size: its rows are complete, and what should be refused is refused."""

from __future__ import annotations

import json

import pytest

from gruve.bench.overload import OverloadBenchConfig, run_overload
from gruve.bench.plots import plot_overload
from gruve.bench.synthetic import Size
from gruve.decode.choose import DecodeConfig


@pytest.mark.slow
def test_overload_answers_its_three_questions_and_draws_them(tmp_path):
    config = OverloadBenchConfig(
        size=Size(1, 16),
        greedy_streams=20,
        asking_streams=8,
        rounds=1,
        warm_s=0.2,
        seconds=0.5,
        loads=(0.1,),
        open_s=0.5,
        refused=40,
        decode=DecodeConfig("cpu", threads=1),
    )
    rows = json.loads(run_overload(config, lambda _: None).to_json())["rows"]
    assert [row["what"] for row in rows] == ["neighbour"] * 3 + ["open", "refusals"]
    alone, beside, asking, loaded, refusals = rows
    assert (alone["beside"], beside["beside"]) == (0, 20)
    assert alone["ttft_ms_p50"] > 0 < beside["ttft_ratio_p99"]
    assert 0 < asking["token_share"] < 1
    assert (loaded["goodput_share"], loaded["failed_otherwise"]) == (1.0, 0)
    assert (refusals["requests"], refusals["refused"]) == (40, 40)
    plot_overload(rows, tmp_path / "overload.svg")
    assert (tmp_path / "overload.svg").stat().st_size > 1_000
