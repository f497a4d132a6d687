"""The one line of JSON in which every benchmark ends, and the machine it names."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

from gruve.bench.machine import (
    descendants,
    describe_machine,
    describe_versions,
    instruction_set,
    process_cpu_s,
    process_rss_mb,
)
from gruve.bench.result import Result, table
from gruve.cli import make_parser
from gruve.cli.commands.bench import _end

RESULT = Result(
    "decode", {"cores": 2}, {"gruve": "1"}, [{"backend": "native", "step_ms": 1.23456789, "bare": math.nan}]
)


def test_the_json_is_one_line_of_four_fields():
    line = RESULT.to_json()
    assert "\n" not in line
    assert list(json.loads(line)) == ["benchmark", "machine", "versions", "rows"]


def test_a_figure_that_does_not_exist_is_null():
    assert json.loads(RESULT.to_json())["rows"] == [{"backend": "native", "step_ms": 1.23457, "bare": None}]


def test_what_was_left_out_stands_beside_the_rows_with_its_reason():
    result = Result("decode", {}, {}, [], [{"backend": "openvino", "why": "not installed"}])
    assert json.loads(result.to_json())["skipped"] == [{"backend": "openvino", "why": "not installed"}]


def test_a_saved_result_is_the_same_line(tmp_path):
    RESULT.save(tmp_path / "new" / "decode.json")
    assert (tmp_path / "new" / "decode.json").read_text() == RESULT.to_json() + "\n"


def test_the_command_prints_the_line_and_writes_it_to_the_file_of_out(tmp_path, capsys):
    path = tmp_path / "decode.json"
    assert _end(RESULT, make_parser().parse_args(["bench", "bits", "--out", str(path)])) == 0
    assert capsys.readouterr().out == path.read_text() == RESULT.to_json() + "\n"


def test_a_table_is_aligned_under_its_columns():
    assert table([{"a": 1.5, "b": None}, {"a": 12345.6, "b": "x"}], ["a", "b"]) == ["    a  b", "  1.5  -", "12346  x"]


def test_the_machine_and_the_versions_are_named():
    assert {"cpu", "cores", "isa", "governor", "memory_gb", "system"} <= set(describe_machine())
    versions = describe_versions("no-such-package")
    assert versions["torch"]
    assert versions["no-such-package"] is None


def test_the_widest_known_instruction_set_is_named():
    avx2 = "fma avx2 f16c"
    assert instruction_set(avx2) == "avx2"
    assert instruction_set(f"{avx2} avx512f avx512bw avx512dq avx512vl") == "avx512"
    assert instruction_set(f"{avx2} avx512f") == "avx2"
    assert instruction_set("fp asimd crc32 asimddp") == "dotprod"
    assert instruction_set("fp asimd crc32") == "neon"


def test_the_costs_of_a_process_and_its_descendants_are_measured():
    alone_mb = process_rss_mb(os.getpid())
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        own, *others = descendants(os.getpid())  # other tests may have started some, too
        assert own == os.getpid()
        assert child.pid in others
        assert os.getppid() not in others
        assert process_rss_mb(os.getpid()) > alone_mb + process_rss_mb(child.pid) / 2
        assert process_cpu_s(os.getpid()) > process_cpu_s(child.pid) >= 0.0
        child.stdin.close()
