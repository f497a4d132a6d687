"""`gruve bench serve`, `growth` and `peers`, each run once at a small size: their rows are complete."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gruve.bench.front import FrontBenchConfig, run_front
from gruve.bench.growth import GrowthBenchConfig, run_growth
from gruve.bench.peers import measure
from gruve.bench.peers.environments import NotInstalled, environment
from gruve.bench.peers.measure import PeersBenchConfig, run_peers
from gruve.bench.peers.systems import SYSTEMS
from gruve.bench.plots import plot_decode, plot_growth, plot_peers
from gruve.bench.protection import ProtectionBenchConfig, run_protection
from gruve.bench.serve import ServeBenchConfig, run_serve
from gruve.bench.sessions import SessionsBenchConfig, run_sessions
from gruve.bench.synthetic import Size
from gruve.decode.choose import DecodeConfig

TINY = Size(1, 16)
CPU = DecodeConfig("cpu", threads=1)
SERVE_ROW = {
    *("sessions", "loop", "tokens_per_s", "bare_tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p99"),
    *("tokens_per_message", "rss_mb", "mismatched_tokens"),
}


def test_serve_measures_both_loops_and_finds_no_token_that_differs():
    config = ServeBenchConfig(
        size=TINY, sessions=(4,), open_loads=(0.1,), open_capacity_sessions=4, rounds=1, warm_s=0.2, seconds=0.8
    )
    config = dataclasses.replace(config, client_processes=1, checked_tokens=2_000, decode=CPU)
    result = json.loads(run_serve(config, lambda _: None).to_json())
    assert [row["loop"] for row in result["rows"]] == ["closed", "open"]
    assert all(set(row) >= SERVE_ROW for row in result["rows"])
    assert [row["mismatched_tokens"] for row in result["rows"]] == [0, 0]
    assert all(row["checked_tokens"] > 0 for row in result["rows"])


def test_front_delivers_whole_streams_of_a_backend_that_computes_nothing():
    config = FrontBenchConfig(size=TINY, sessions=(1, 5), rounds=1, warm_s=0.2, seconds=0.8, client_processes=1)
    config = dataclasses.replace(config, min_length=200, max_length=300)
    one, five = json.loads(run_front(config, lambda _: None).to_json())["rows"]
    assert (one["sessions"], five["sessions"], one["failed"], five["failed"]) == (1, 5, 0, 0)
    assert 0 < one["tokens_per_s"] <= one["made_tokens_per_s"]
    assert five["tokens_per_message"] > 1


@pytest.mark.slow
def test_protection_compares_servers_with_keys_and_tls_to_a_plain_one():
    config = ProtectionBenchConfig(size=TINY, sessions=4, rounds=1, warm_s=0.2, seconds=0.6, client_processes=1)
    rows = json.loads(run_protection(dataclasses.replace(config, decode=CPU), lambda _: None).to_json())["rows"]
    assert [row["protection"] for row in rows] == ["none", "keys", "keys and TLS"]
    assert (rows[0]["tokens_ratio"], rows[0]["cpu_ratio"]) == (1.0, 1.0)
    assert all(row["tokens_per_s"] > 0 and row["failed"] == 0 for row in rows)


@pytest.mark.slow
def test_sessions_answers_its_four_questions_and_finds_no_token_that_differs():
    config = SessionsBenchConfig(size=TINY, rounds=1, warm_s=0.2, seconds=0.5, continued=8, rewinds=2, stored=200)
    config = dataclasses.replace(config, stored_size=TINY, sampled=10, client_processes=1, decode=CPU)
    rows = json.loads(run_sessions(config, lambda _: None).to_json())["rows"]
    assert [row["question"] for row in rows] == ["durability", "eviction", "rewinding", "many"]
    durability, eviction, rewinding, many = rows
    assert durability["sqlite_tokens_per_s"] > 0
    assert eviction["in_store_at_the_end"] > 0
    assert (rewinding["differing_tokens"], many["stored"], many["continued"]) == (0, 200, 10)
    assert rewinding["steps_max"] <= rewinding["steps_max_bound"]


def test_growth_goes_through_active_and_idle_sessions_and_draws_them(tmp_path):
    config = GrowthBenchConfig(size=TINY, active=(2,), idle=(0, 20), rounds=1, warm_s=0.2, seconds=0.5)
    config = dataclasses.replace(config, client_processes=1, decode=CPU)
    rows = run_growth(config, lambda _: None).rows
    assert [(row["state"], row["sessions"]) for row in rows] == [("active", 2), ("idle", 0), ("idle", 20)]
    plot_growth(rows, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").stat().st_size > 1_000


def test_peers_measures_what_runs_and_reports_why_others_do_not(tmp_path, monkeypatch):
    broken = dataclasses.replace(SYSTEMS[0], name="broken", command=lambda *_: ("sh", "-c", "echo Error: no; exit 3"))
    monkeypatch.setattr(measure, "SYSTEMS", (broken,))
    monkeypatch.setattr(measure, "environment", lambda cache, *_, **__: cache)
    config = PeersBenchConfig(sizes=(TINY,), streams=(2,), systems=("gruve", "broken"), rounds=1, cache=tmp_path)
    config = dataclasses.replace(config, warm_s=0.2, seconds=0.5, client_processes=1)
    result = json.loads(run_peers(config, lambda _: None).to_json())
    (row,) = result["rows"]
    assert {"system", "model", "streams", "tokens_per_s", "ttft_ms_p99"} <= set(row)
    assert row["system"] == "gruve"
    assert "it ended with 3: Error: no" in result["skipped"][0]["why"]


def test_peers_of_which_none_is_installed_are_reported_and_nothing_is_measured(tmp_path):
    config = dataclasses.replace(PeersBenchConfig.quick(), sizes=(TINY,), systems=("LitServe",), cache=tmp_path)
    result = run_peers(config, lambda _: None)
    assert (result.rows, [row["system"] for row in result.skipped]) == ([], ["LitServe"])


def test_quick_installs_nothing(tmp_path):
    with pytest.raises(NotInstalled, match="not installed yet"):
        environment(tmp_path, "peer", ("litserve==0.2.19",), install=False)


def test_an_environment_is_used_again_while_its_pins_stand(tmp_path):
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "requirements.txt").write_text("litserve==0.2.19\n")
    assert environment(tmp_path, "peer", ("litserve==0.2.19",), install=False) == tmp_path / "peer"
    with pytest.raises(NotInstalled):
        environment(tmp_path, "peer", ("litserve==0.2.20",), install=False)


def test_peer_rows_can_be_drawn(tmp_path):
    rows = [
        {"system": name, "model": "2x256", "streams": 64, "tokens_per_s": speed, "ttft_ms_p99": 1.0}
        for name, speed in (("gruve", 9.0), ("a", 1.0), ("b", 2.0))
    ]
    plot_peers(rows, tmp_path / "peers.svg")
    assert (tmp_path / "peers.svg").stat().st_size > 1_000


def test_decode_rows_can_be_drawn(tmp_path):
    rows = [
        {"backend": name, "cell": "gru", "layers": 3, "hidden": 512, "batch": 4, "threads": 1, "tokens_per_s": 1e4}
        for name in ("native", "torch")
    ]
    plot_decode(rows, tmp_path / "decode.svg")
    assert (tmp_path / "decode.svg").stat().st_size > 1_000
