"""`gruve bench chaos` in a short form: servers are killed under streams, every token is compared with its twin's."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from gruve.bench.chaos import measure as chaos
from gruve.bench.chaos.fault_injection import FAULTS
from gruve.bench.chaos.measure import REDIS_TROUBLES, ChaosBenchConfig, passed, run_chaos
from gruve.bench.chaos.replicas import find_program
from gruve.bench.chaos.streams import Difference, Heard, Plan
from gruve.cli import main
from gruve.client import Answer, Chunk
from requiring import need

SHORT = dataclasses.replace(ChaosBenchConfig.quick(), kills=1, tokens_per_s=100.0, longest_wait_s=0.5)


def rows_of(*scenarios, **changes):
    """Returns the rows of scenarios; fails with their messages if one did not pass."""
    rows, said = [], []
    config = dataclasses.replace(SHORT, scenarios=scenarios, **changes)
    if not asyncio.run(run_chaos(config, rows.append, said.append)):
        pytest.fail("\n".join([*map(str, rows), *said]))  # in whole, because the message of an assertion is cut
    return rows


def test_64_streams_outlive_their_server_bit_for_bit():
    (row,) = rows_of("sqlite-kill")
    assert (row["streams"], row["kills"], row["failed_streams"]) == (64, 1, 0)
    assert all(streams >= 32 for streams in row["streams_at_kill"])
    assert (row["differing_tokens"], row["lost_tokens"], row["repeated_tokens"]) == (0, 0, 0)
    assert row["tokens"] > 64 * 150


@pytest.mark.slow
def test_streams_outlive_replicas_redis_and_their_connections():
    for program in ("redis-server", "haproxy"):
        need(program, present=find_program(program) is not None, install=f"apt-get install {program}")
    rows = rows_of("redis-haproxy-kill", *REDIS_TROUBLES, replica_kills=2, tokens_per_s=30.0)
    assert {row["scenario"] for row in rows} == {"redis-haproxy-kill", *REDIS_TROUBLES}
    assert all(row["streams_at_kill"] and min(row["streams_at_kill"]) >= 32 for row in rows)


@pytest.mark.slow
def test_streams_go_on_while_their_store_fails_and_keep_what_was_durable():
    need("redis-server", present=find_program("redis-server") is not None, install="apt-get install redis-server")
    rows = rows_of(*FAULTS, tokens_per_s=30.0)
    assert {row["scenario"] for row in rows} == set(FAULTS)
    assert all(row["store_errors"] > 0 and row["streams_behind"] == 64 for row in rows)


def test_a_scenario_without_its_programs_says_that_it_was_skipped(monkeypatch):
    monkeypatch.setattr(chaos, "find_program", lambda _: None)
    (row,) = rows_of("redis-drop")
    assert row == {"benchmark": "chaos", "scenario": "redis-drop", "skipped": "redis-server is not installed"}


def test_a_scenario_that_is_none_is_refused(capsys):
    assert main(["bench", "chaos", "--scenarios", "sqlite-kill,flood"]) == 2
    assert "flood" in capsys.readouterr().err


def test_what_differs_is_lost_or_comes_twice_is_found():
    twin, heard, found = Heard({5: 1, 6: 2, 7: 3, 8: 4}, ended=True), Heard(), Difference()
    for chunk in (Chunk(5, (1, 2), ""), Chunk(6, (9,), ""), Chunk(8, (4,), "")):
        heard.take(chunk)
    heard.ended = True
    found.compare("it", heard, twin)
    found.compare_record("it", [0, 1], [0, 2], 4)
    assert (found.differing, found.lost, found.repeated) == (2, 3, 1)
    assert not passed({"differing_tokens": 0, "lost_tokens": 1, "repeated_tokens": 0, "failed_streams": 0})


def test_what_a_control_takes_back_was_not_heard():
    heard = Heard()
    heard.take(Chunk(5, (1, 2, 3), ""))
    heard.take(Chunk(6, (), "", answer=Answer(1, 6)))
    heard.take(Chunk(6, (8,), ""))
    assert (heard.tokens, heard.repeated) == ({5: 1, 6: 8}, 0)


def test_a_plan_gives_every_turn_a_seed_of_its_own_and_steers_half_of_the_streams():
    plan = Plan("tiny", 150, 400)
    turns = [plan.turn(stream, number) for stream in range(64) for number in range(3)]
    assert len({turn.seed for turn in turns}) == len(turns)
    assert sum(bool(turn.changes) for turn in turns) == len(turns) // 2
    assert plan.turn(7, 2) == plan.turn(7, 2)
