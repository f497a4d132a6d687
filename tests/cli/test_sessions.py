"""`gruve sessions` and the session of `gruve chat`, with the real command against a real server."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from commands import generate, gruve
from gruve.cli.commands.sessions import duration
from gruve.client import Client
from gruve.decode.choose import DecodeConfig
from server_process import Process


@dataclass
class Address:
    address: str


@pytest.fixture(scope="module")
def server(tiny_repository):
    """`gruve serve` as a process, with a key for exported sessions."""
    with Process(tiny_repository, "--store", "memory") as process:
        yield Address(f"127.0.0.1:{process.line['port']}")


@pytest.fixture
def session(server):
    """A session of 40 tokens after "ROMEO:"; deleted afterwards."""
    with Client(server.address) as client:
        client.generate("ROMEO:", model="tiny", new_session=True, seed=3, max_tokens=40).text()
        found = next(iter(client.list_sessions("tiny"))).id
        yield found
        for kept in client.list_sessions():
            client.delete_session(kept.id)


def sessions(server, *arguments: str, **more):
    return gruve("sessions", *arguments, "--address", server.address, **more)


def test_sessions_are_a_line_each_with_a_header(server, session):
    lines = [line.split("\t") for line in sessions(server, "list").stdout.splitlines()]
    assert lines[0] == ["id", "model", "position", "seed", "in use", "created", "updated", "expires"]
    assert lines[1][:5] == [session, "tiny", "47", "3", "no"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in lines[1][5:])


def test_sessions_are_json_with_the_contracts_names(server, session):
    (listed,) = json.loads(sessions(server, "list", "--json", "--model", "tiny").stdout)
    assert (listed["id"], listed["model"], listed["position"], listed["sampling"]["seed"]) == (session, "tiny", 47, 3)
    assert json.loads(sessions(server, "list", "--json", "--model", "truncated").stdout) == []


def test_a_session_is_shown_with_its_text(server, session):
    shown = sessions(server, "show", session).stdout
    assert ("position\t47\n" in shown, "idle ttl\t1 h\n" in shown) == (True, True), shown
    text = sessions(server, "show", session, "--text").stdout
    shown = json.loads(sessions(server, "show", session, "--json").stdout)
    assert text.startswith("ROMEO:")
    assert (shown["text"], len(shown["token_ids"])) == (text, 47)
    assert [generation["finish_reason"] for generation in shown["generations"]] == ["length"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(2_592_000, "30 d"), (5_400, "1 h 30 min"), (93_784.5, "1 d 2 h 3 min 4.5 s"), (0, "0 s")]
)
def test_a_duration_is_said_in_units(seconds, words):
    assert duration(seconds) == words


def test_a_session_that_is_rewound_goes_on_as_before(server, session):
    before = sessions(server, "show", session, "--text").stdout
    assert sessions(server, "rewind", session, "17").stderr == f"session {session} is at position 17\n"
    generated = generate(server.address, "--session", session, "--max-tokens", "30", "--quiet")
    assert before.endswith(generated.stdout)
    assert sessions(server, "rewind", session, "17", "--seed", "99").returncode == 0
    assert generate(server.address, "--session", session, "--max-tokens", "30").stdout != generated.stdout


def test_forks_are_printed_by_their_ids_and_keep_their_seeds(server, session):
    done = sessions(server, "fork", session, "--seed", "8", "--seed", "9")
    forks = done.stdout.split()
    with Client(server.address) as client:
        assert [client.get_session(fork).session.sampling.seed for fork in forks] == [8, 9]
    (one,) = json.loads(sessions(server, "fork", session, "--json").stdout)
    assert one["position"] == 47


def test_an_exported_session_goes_on_under_a_new_id(server, session, tmp_path):
    path = tmp_path / "new" / "romeo.session"
    done = sessions(server, "export", session, str(path))
    assert (done.returncode, done.stderr) == (0, f"wrote {path}, {path.stat().st_size:,} bytes\n")
    imported = sessions(server, "import", str(path)).stdout.strip()
    assert imported != session
    more = [generate(server.address, "--session", s, "--max-tokens", "20").stdout for s in (session, imported)]
    assert more[0] == more[1]


def test_sessions_that_are_deleted_are_gone(server, session):
    done = sessions(server, "delete", session)
    assert (done.returncode, done.stderr) == (0, f"deleted {session}\n")
    again = sessions(server, "show", session)
    assert (again.returncode, "SESSION_EXPIRED" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("rewind", "x", "0"), 2, "POSITION is '0'; must be 1 or more"),
        (("rewind", "x", "one"), 2, "POSITION is 'one'; must be a whole number"),
        (("fork", "x", "--seed", "-1"), 2, "--seed is '-1'; must be 0 to 18446744073709551615"),
        (("show", "forged"), 1, "SESSION_UNKNOWN"),
        (("import", "/no/where"), 1, "/no/where: No such file or directory"),
        (
            ("lits",),
            2,
            "ACTION is 'lits'; must be one of list, show, rewind, fork, export, import, delete; did you mean",
        ),
    ],
)
def test_what_is_wrong_is_one_line(server, arguments, code, line):
    done = sessions(server, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert line in done.stderr


def test_chat_keeps_its_session_and_goes_on_with_it(server):
    first = gruve("chat", "tiny", "--address", server.address, "--max-tokens", "30", "--seed", "5", text="ROMEO:\n")
    kept = re.search(r"^gruve chat tiny --session (\S+) goes on from here$", first.stderr, re.MULTILINE)[1]
    again = gruve("chat", "tiny", "--address", server.address, "--session", kept, "--max-tokens", "20", text="\n")
    assert f"--session {kept} goes on" in again.stderr
    with Client(server.address) as client:
        assert client.get_session(kept).text == "ROMEO:\n" + first.stdout + again.stdout
        client.delete_session(kept)


def test_a_chat_in_which_nothing_was_said_leaves_no_session(server):
    with Client(server.address) as client:
        before = len(list(client.list_sessions()))
        done = gruve("chat", "tiny", "--address", server.address, text="/new\n/quit\n")
        assert (done.returncode, done.stderr) == (0, "a new session\n")
        assert len(list(client.list_sessions())) == before


def test_a_session_of_other_arithmetic_continues_where_that_is_allowed(start, tmp_path):
    store = f"sqlite:{tmp_path}/sessions.db"
    before = start(decode=DecodeConfig("cpu", 8, arithmetic="float32"), store=store, session_key=b"k" * 32)
    kept = before.create()
    before.read(session_id=kept, max_tokens=5)
    before.close().result()
    after = start(store=store, session_key=b"k" * 32)
    asked = ("--session", kept, "--max-tokens", "5")
    refused = generate(after.address, *asked)
    assert (refused.returncode, "--arithmetic and device continues it bit for bit" in refused.stderr) == (1, True)
    assert generate(after.address, *asked, "--allow-numerics-change").returncode == 0
    assert after.session(kept).position == 11
