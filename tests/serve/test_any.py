"""Any order of operations on sessions gives the same result as a model that keeps every token."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gruve.v1 import sampling_pb2 as s
from serving import Read, first, read, refusal, until
from session_calls import KEY, delete, export, fork, get, import_, rewind, seeded, stop, without


class Remembering:
    """Applies operations to a server's sessions and keeps every token, to compare with."""

    def __init__(self, restart, plain) -> None:
        self._restart, self._plain = restart, plain
        self.server = restart(None)
        self.sessions: list[dict] = []
        self._asked = 0

    def create(self, n):
        self.sessions.append({"id": self.server.create(), "tokens": [0], "seed": n})

    def generate(self, session, n):
        self._asked += 1
        name = f"generation {self._asked}"
        prompt = [5 + n % 40] * (n % 3)
        asked = {"max_tokens": 1 + n % 40, "ignore_eos": True, "sampling": seeded(session["seed"])}
        if prompt:
            asked["tokens"] = s.TokenIds(ids=prompt)
        whole = self._whole(session, asked, prompt)
        call = self.server.generate(session_id=session["id"], generation_id=name, max_tokens_per_message=1, **asked)
        if n % 4 == 0:  # cut, and resumed from the client's position
            got = Read(first(call, n % asked["max_tokens"] + 1))
            call.cancel()
            at = got.messages[-1].position + len(got.messages[-1].token_ids)
            if n % 8 == 0:
                self.server = self._restart(self.server)
            rest = self.server.read(session_id=session["id"], generation_id=name, from_position=at, **asked)
            assert got.tokens + rest.tokens == whole
        else:
            assert read(call).tokens == whole
            if n % 4 == 1:
                assert self.server.read(session_id=session["id"], generation_id=name).tokens == whole
        session["tokens"] += prompt + whole

    def _whole(self, session, asked, prompt):
        """The expected messages if nothing is kept: everything is read again."""
        asked = without(asked, "tokens")
        before = [*session["tokens"][1:], *prompt]
        return self._plain.read(**asked, **({"tokens": s.TokenIds(ids=before)} if before else {})).tokens

    def rewind(self, session, n):
        to = 1 + n % len(session["tokens"])
        rewind(self.server, session["id"], to, **({"seed": n} if n % 2 else {}))
        session["seed"] = n if n % 2 else session["seed"]
        del session["tokens"][to:]

    def fork(self, session, n):
        for i, branch in enumerate(fork(self.server, session["id"], n, n + 1)):
            self.sessions.append({"id": branch.id, "tokens": list(session["tokens"]), "seed": n + i})

    def move(self, session, n):
        copy = import_(self.server, export(self.server, session["id"]))
        self.sessions.append({"id": copy.id, "tokens": list(session["tokens"]), "seed": session["seed"]})

    def delete(self, session, n):
        delete(self.server, session["id"])
        self.sessions.remove(session)
        assert refusal(lambda: get(self.server, session["id"])).reason == "SESSION_EXPIRED"

    def evict(self, session, n):
        until(lambda: not self.server.server.persistence.behind)
        self.server.run(forget(self.server.server.table, session["id"]))

    def restart(self, session, n):
        self.server = self._restart(self.server)

    def check(self):
        for session in self.sessions:
            assert list(get(self.server, session["id"], page_size=65_536).token_ids) == session["tokens"]


async def forget(sessions, session_id):
    session = sessions.find(session_id)
    if session is not None and not session.in_use:
        sessions.remove(session)


ACTS = ("create", "generate", "generate", "generate", "rewind", "fork", "move", "delete", "evict", "restart")


def walk(acts, start, where, plain):
    def restart(server):
        if server is not None:
            stop(server)
        return start(store=where, session_key=KEY)

    remembering = Remembering(restart, plain)
    for act, n in acts:
        if act == "create" or not remembering.sessions:
            remembering.create(n)
        else:
            getattr(remembering, act)(remembering.sessions[n % len(remembering.sessions)], n)
    remembering.check()
    stop(remembering.server)


acts = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 10**6)), min_size=5, max_size=25)
any_acts = given(acts=acts)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@any_acts
def test_any_use_of_stored_sessions_is_what_a_model_that_remembers_says(start, server, tmp_path_factory, acts):
    walk(acts, start, f"sqlite:{tmp_path_factory.mktemp('any')}/s.db", server)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@any_acts
def test_any_use_of_stored_sessions_for_long(start, server, tmp_path_factory, acts):
    walk(acts, start, f"sqlite:{tmp_path_factory.mktemp('any')}/s.db", server)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@any_acts
def test_any_use_of_sessions_in_redis_for_long(start, server, redis_server, acts):
    walk(acts, start, redis_server.url, server)
