"""The tables of benchmarks/README.md have the figures of the result files that they cite."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
README = (BENCHMARKS / "README.md").read_text()
SYSTEMS = {
    "gruve": "gruve",
    "LitServe": "LitServe",
    "Ray": "Ray Serve",
    "Triton": "Triton",
    "grpc.aio": "grpc.aio + nn.GRU",
}


def rows_of(name: str) -> list[dict]:
    return json.loads((BENCHMARKS / name).read_text())["rows"]


def table_after(link: str) -> list[list[str]]:
    """The cells of the first table after a link to this file, without its header."""
    after = README[README.index(f"]({link})") :]
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def agrees(cell: str, value: float) -> bool:
    """Whether the first number of a cell is the value, rounded to as many digits as it shows."""
    digits = re.search(r"\d[\d,]*(?:\.\d+)?", cell)[0].replace(",", "")
    last = -len(digits.partition(".")[2]) if "." in digits else len(digits) - len(digits.rstrip("0"))
    return abs(float(digits) - value) <= 0.501 * 10.0**last


def differing(cells: Sequence[str], values: Sequence[float]) -> list[tuple[str, float]]:
    return [(cell, value) for cell, value in zip(cells, values, strict=True) if not agrees(cell, value)]


@pytest.mark.parametrize("name", ["serve-int8-zen4.json", "serve-int8.json", "serve.json"])
def test_the_tables_of_the_server_are_those_of_its_runs(name):
    closed = {row["sessions"]: row for row in rows_of(name) if row["loop"] == "closed"}
    for sessions, *cells in table_after(name):
        row = closed[int(sessions.replace(",", ""))]
        speed, bare = row["tokens_per_s"], row["bare_tokens_per_s"]
        assert differing(cells, [speed, bare, 100 * speed / bare, row["ttft_ms_p50"], row["ttft_ms_p99"]]) == []


def test_the_table_of_a_step_in_int8_is_that_of_its_run():
    step_ms = {(row["backend"], row["batch"]): row["step_ms"] for row in rows_of("decode-int8.json")}
    for rows, *cells in table_after("decode-int8.json"):
        ours = step_ms["native_int8", int(rows)]
        peers = [step_ms[name, int(rows)] for name in ("torch_int8", "onnxruntime_int8", "openvino_int8", "torch")]
        assert differing(cells, [ours, *(value for peer in peers for value in (peer, peer / ours))]) == []


def test_the_table_of_a_step_in_float32_is_that_of_its_run():
    step_ms = {
        (row["backend"], row["batch"]): row["step_ms"]
        for row in rows_of("decode.json")
        if (row["hidden"], row["cell"], row["threads"]) == (512, "gru", 1)
    }
    for rows, *cells in table_after("decode.json"):
        names = ("native", "torch", "onnxruntime", "openvino")
        assert differing(cells[:4], [step_ms[name, int(rows)] for name in names]) == []


def test_the_run_on_zen_3_has_its_share_of_the_peak_and_its_distance_to_torch():
    result = json.loads((BENCHMARKS / "decode-zen3.json").read_text())
    ours, torch = (
        {
            row["batch"]: row
            for row in result["rows"]
            if (row["backend"], row["hidden"], row["cell"], row["threads"]) == (backend, 512, "gru", 1)
        }
        for backend in ("native", "torch")
    )
    (row,) = (line for line in README.splitlines() if "(decode-zen3.json)" in line)
    assert result["machine"]["isa"] == "avx2"
    assert "74 to 80%" in row
    assert all(0.735 < ours[batch]["of_peak"] < 0.805 for batch in (4, 8, 16, 32, 64, 256))
    assert "12 times as long as gruve at 4 rows, and 7 times at 8" in row
    assert [round(torch[batch]["step_ms"] / ours[batch]["step_ms"]) for batch in (4, 8)] == [12, 7]


def test_the_table_of_other_servers_is_that_of_its_run():
    found = {(row["system"], row["model"]): row for row in rows_of("peers-int8.json") if row["streams"] == 64}
    for name, *cells in table_after("peers-int8.json"):
        pair = [found[SYSTEMS[name.split()[0]], model] for model in ("3x512", "2x256")]
        values = [row[key] for row in pair for key in ("tokens_per_s", "ttft_ms_p50", "ttft_ms_p99")]
        assert differing(cells, values) == []


def test_the_table_of_the_gateway_is_that_of_its_run():
    found = {(row["way"], row["streams"]): row for row in rows_of("gateway.json") if row["what"] == "speed"}
    for way, *cells in table_after("gateway.json"):
        one, many = found[way, 1], found[way, 64]
        values = [value for row in (one, many) for value in (100 * row["tokens_ratio"], row["ttft_more_ms_p50"])]
        assert differing(cells, [*values, many["gateway_cpu_us_per_token"]]) == []
