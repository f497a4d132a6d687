"""Sessions that outlive memory, connections and servers: every stream is the same as without interruption."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time

from google.protobuf import duration_pb2

from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc, session_pb2_grpc
from gruve.v1 import sampling_pb2 as s
from gruve.v1 import session_pb2 as p
from memory_store import MemoryStore
from server_process import Process
from serving import PATIENCE_S, Read, broken, first, refusal, token, until
from session_calls import Clock, delete, fork, get, listed, rewind, seeded, stop


def everything(server, session):
    """Everything that the server reports of a session except its location and its times."""
    page = get(server, session)
    for field in ("location", "update_time", "expire_time", "durable_position"):
        page.session.ClearField(field)
    return page


def test_everything_of_a_session_survives_a_restart(start, sqlite):
    server = start(store=sqlite)
    session = server.create()
    server.read(session_id=session, generation_id="a", text="O", max_tokens=700, ignore_eos=True, sampling=seeded(1))
    rewind(server, session, 600, seed=9)
    server.read(session_id=session, generation_id="b", text="And", max_tokens=5, stop=["zz"])
    before = everything(server, session)
    (branch,) = fork(server, session, 9)
    stop(server)
    server = start(store=sqlite)
    assert server.session(session).location == p.SESSION_LOCATION_STORE
    assert everything(server, session) == before
    assert set(next(listed(server))) == {session, branch.id}
    again = server.read(session_id=session, generation_id="b")
    assert again.end.next_position == before.session.position
    assert server.session(session).location == p.SESSION_LOCATION_MEMORY
    assert (
        server.read(session_id=session, max_tokens=9).tokens == server.read(session_id=branch.id, max_tokens=9).tokens
    )


def test_who_has_heard_the_end_of_a_generation_finds_all_of_it_in_the_store(start):
    store = MemoryStore()
    store.shared = False  # so that no write is early because another server may wait for a lease
    server = start(shared=store)
    session = server.create()
    for tokens in (6, 17, 40):
        asked = {"max_tokens": tokens, "max_tokens_per_second": 500.0, "ignore_eos": True}
        end = server.read(session_id=session, **asked).end
        assert store.read(session, time.time()).summary.position == end.next_position


def test_a_killed_servers_streams_go_on_bit_for_bit_after_its_restart(tiny_repository, start, sqlite):
    plain, heads, rests = start(slots=32), [], []
    asked = [{"text": "O" * (1 + i), "max_tokens": 400, "ignore_eos": True, "sampling": seeded(i)} for i in range(8)]
    with Process(tiny_repository, "--store", sqlite) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        new = g.NewSession(model="tiny")
        calls = [stub.Generate(g.GenerateRequest(new_session=new, max_tokens_per_second=400.0, **a)) for a in asked]
        heads = [[*first(call, 1), *(token(call) for _ in range(3 + i))] for i, call in enumerate(calls)]
        server.signal(signal.SIGKILL)
        heads = [[*head, *broken(lambda: call)[0]] for head, call in zip(heads, calls, strict=True)]  # noqa: B023
    with Process(tiny_repository, "--store", sqlite) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for head, a in zip(heads, asked, strict=True):
            here = {"session_id": head[0].start.session_id, "generation_id": head[0].start.generation_id}
            at = head[-1].position + len(head[-1].token_ids)
            rests.append(list(stub.Generate(g.GenerateRequest(from_position=at, **here, **a))))
    for head, rest, a in zip(heads, rests, asked, strict=True):
        assert Read([*head, *rest]).tokens == plain.read(**a).tokens


def test_sessions_leave_memory_for_the_store_and_come_back_as_they_were(start, sqlite, server):
    small = start(store=sqlite, sessions=SessionsConfig(budget_bytes=30_000), slots=32)
    asked = {"text": "O", "max_tokens": 20}
    sessions = [small.create() for _ in range(60)]
    for i, session in enumerate(sessions):
        small.read(session_id=session, sampling=seeded(i), **asked)
    until(lambda: len(small.server.table) < 30)
    assert small.metric("gruve_session_moves_total", reason="evicted") > 20
    for i, session in enumerate(sessions):
        twin = server.create()
        server.read(session_id=twin, sampling=seeded(i), **asked)
        assert small.read(session_id=session, max_tokens=9).tokens == server.read(session_id=twin, max_tokens=9).tokens
    assert small.metric("gruve_session_memory_bytes") <= 30_000
    assert small.metric("gruve_session_moves_total", reason="returned") > 20
    assert [i for page in listed(small, page_size=7) for i in page] == sessions[::-1]


def test_a_stored_session_expires_and_a_deleted_one_is_gone(start, sqlite):
    clock = Clock()
    server = start(store=sqlite, clock=clock)
    kept, brief, deleted = (server.create(idle_ttl=duration_pb2.Duration(seconds=ttl)) for ttl in (90, 10, 90))
    delete(server, deleted)
    stop(server)
    clock.now_s += 10
    server = start(store=sqlite, clock=clock)
    assert [i for page in listed(server) for i in page] == [kept]
    for gone in (brief, deleted):
        assert refusal(lambda: server.generate(session_id=gone)).reason == "SESSION_EXPIRED"  # noqa: B023
        assert refusal(lambda: get(server, gone)).reason == "SESSION_EXPIRED"  # noqa: B023
    until(lambda: server.metric("gruve_sessions", where="store") == 1)


def test_a_model_that_is_gone_leaves_its_sessions_to_be_read(start, sqlite, repository, tiny_repository):
    server = start(store=sqlite, models=repository)
    session = server.create("lstm")
    server.read(session_id=session, max_tokens=3, ignore_eos=True, sampling=s.SamplingParameters(top_k=5))
    stop(server)
    server = start(store=sqlite, models=tiny_repository)
    page = get(server, session)
    assert (page.session.model, len(page.token_ids), page.text) == ("lstm", 4, "")
    assert refusal(lambda: server.generate(session_id=session)).reason == "MODEL_UNKNOWN"


def test_the_store_of_the_command_line_is_a_file_where_a_user_expects_it(tiny_repository, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Process(tiny_repository, "--store", "sqlite") as server, server.connect() as channel:
        stub = session_pb2_grpc.SessionServiceStub(channel)
        session = stub.CreateSession(p.CreateSessionRequest(session=g.NewSession(model="tiny"))).session
        assert session.idle_ttl.seconds == 30 * 86_400
        with Process(tiny_repository, "--store", "sqlite") as second:
            code, out, err = second.end()
        assert (code, out) == (1, "")
        assert "in use by another server" in err
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    assert (tmp_path / "gruve" / "sessions.db").stat().st_mode & 0o777 == 0o600


def test_a_server_whose_redis_is_not_there_says_which_and_why_and_ends(tiny_repository):
    with socket.socket() as nobody:  # the port is in use, but nothing listens
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        command = [sys.executable, "-m", "gruve.cli", "serve", "--models", str(tiny_repository), "--port", "0"]
        command += ["--metrics-port", "0", "--store", f"redis://:secret@{where}/3"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stdout) == (1, "")
    why = json.loads(ended.stderr.splitlines()[-1])["message"]
    assert why.startswith(f"the session store does not answer or refuses the call: redis://{where}/3: ")
    assert "refused" in why
    assert "secret" not in ended.stderr
