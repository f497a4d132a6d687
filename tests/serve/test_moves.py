"""Sessions forked, rewound, exported and imported on the wire: each continues as if it had always been alone."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import duration_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import session_pb2 as p
from serving import HELD, refusal, token, until
from session_calls import KEY, export, fork, get, import_, rewind, seeded


def test_branches_go_on_by_themselves_and_share_nothing(server):
    session = server.create()
    server.read(session_id=session, text="O", max_tokens=8, sampling=seeded(1))
    one, two = fork(server, session, 1, 5)
    whole = server.read(session_id=session, max_tokens=9)
    assert server.read(session_id=one.id, max_tokens=9).tokens == whole.tokens
    other = server.read(session_id=two.id, max_tokens=9)
    assert other.tokens != whole.tokens
    assert other.start.sampling.seed == two.sampling.seed == 5
    assert [server.session(i).position for i in (session, one.id, two.id)] == [19, 19, 19]
    assert get(server, two.id).token_ids[:10] == get(server, session).token_ids[:10]


def test_branches_without_a_seed_are_given_one_each(server):
    session = server.create()
    request = p.ForkSessionRequest(session_id=session, branches=[p.ForkBranch()] * 3)
    branches = server.sessions.ForkSession(request).sessions
    assert len({b.sampling.seed for b in branches} | {b.id for b in branches}) == 6
    assert server.read(session_id=branches[0].id, max_tokens=1).start.sampling == branches[0].sampling


def test_a_branch_of_an_unfinished_generation_finishes_it_for_itself(server):
    session = server.create()
    asked = {"generation_id": "a", "text": "O", "max_tokens": 20, "sampling": seeded(3)}
    call = server.generate(session_id=session, max_tokens_per_second=HELD, **asked)
    token(call)
    call.cancel()
    until(lambda: not server.session(session).in_use)
    (branch,) = fork(server, session, 3)
    assert server.read(session_id=branch.id, **asked).tokens == server.read(session_id=session, **asked).tokens
    assert server.session(session).position == 22


@pytest.mark.parametrize("count", [0, 65])
def test_the_number_of_branches_has_bounds(server, count):
    request = p.ForkSessionRequest(session_id=server.create(), branches=[p.ForkBranch()] * count)
    failure = refusal(lambda: server.sessions.ForkSession(request))
    assert (failure.reason, failure.violations[0].field) == ("INVALID_FIELD", "branches")


def test_a_rewound_session_repeats_its_tokens_or_draws_others(server):
    session = server.create()
    asked = {"session_id": session, "text": "O", "max_tokens": 30}
    whole = server.read(generation_id="a", **asked)
    rewound = rewind(server, session, 1)
    assert (rewound.position, rewound.sampling) == (1, whole.start.sampling)
    assert server.read(generation_id="a", **asked).tokens == whole.tokens
    rewind(server, session, 12)
    assert server.read(session_id=session, max_tokens=20).tokens == whole.tokens[10:]
    assert rewind(server, session, 12, seed=4).sampling.seed == 4
    assert server.read(session_id=session, max_tokens=20).tokens != whole.tokens[10:]
    assert get(server, session).generations[0].finish_reason == g.FINISH_REASON_CANCELLED


def test_a_rewind_is_refused_where_there_is_nothing_to_take_back(server):
    session = server.create()
    failure = refusal(lambda: rewind(server, session, 2))
    assert (failure.reason, failure.metadata["position"]) == ("POSITION_MISMATCH", "1")
    assert refusal(lambda: rewind(server, session, 0)).violations[0].field == "to_position"
    assert rewind(server, session, 1).position == 1


def test_rewinding_a_thousand_tokens_costs_at_most_256_steps(server):
    session = server.create()
    whole = server.read(session_id=session, max_tokens=3_000, ignore_eos=True)
    for back in (1_000, 999, 700, 300, 40):
        rewind(server, session, 3_001 - back)
        kept = server.server.table.get(session)
        assert kept.position - 1 - kept.consumed <= 256
        again = server.read(session_id=session, max_tokens=back, ignore_eos=True)
        assert again.tokens == whole.tokens[-back:]


def test_what_uses_a_session_is_busy_while_another_does(start):
    server = start(session_key=KEY)
    session = server.create()
    call = server.generate(session_id=session, max_tokens_per_second=HELD)
    token(call)
    for ask in (lambda: fork(server, session, 1), lambda: rewind(server, session, 1), lambda: export(server, session)):
        failure = refusal(ask)
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
    call.cancel()


def test_an_exported_session_goes_on_elsewhere(start):
    one, two = start(session_key=KEY), start(session_key=KEY)
    session = one.create()
    one.read(session_id=session, text="O", max_tokens=300, sampling=seeded(2), ignore_eos=True)
    blob = export(one, session)
    copies = [import_(two, blob).id, import_(two, blob, idle_ttl=duration_pb2.Duration(seconds=7)).id]
    whole = one.read(session_id=session, max_tokens=20)
    for copy in copies:
        assert two.read(session_id=copy, max_tokens=20).tokens == whole.tokens
        assert get(two, copy).generations[0].id == get(one, session).generations[0].id
    assert two.session(copies[1]).idle_ttl.seconds == 7
    assert one.session(session).position == 322


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_altered_export_is_refused(exporting, data):
    server, blob = exporting
    at = data.draw(st.integers(0, len(blob) - 1))
    spoilt = data.draw(
        st.sampled_from([blob[:at], blob[at:] if at else b"", blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]])
    )
    failure = refusal(lambda: import_(server, spoilt))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BLOB_REFUSED")


@pytest.fixture
def exporting(start):
    server = start(session_key=KEY)
    session = server.create()
    server.read(session_id=session, text="O", max_tokens=5)
    return server, export(server, session)


def test_an_export_of_another_key_or_too_long_a_one_is_refused(start, server):
    one, two = start(session_key=KEY), start(export_key=b"another key than that one")
    session = one.create()
    assert refusal(lambda: import_(two, export(one, session))).reason == "BLOB_REFUSED"
    one.server.table.get(session).transcript.extend([1] * 600_000)
    assert refusal(lambda: export(one, session)).reason == "EXPORT_TOO_LARGE"
    assert refusal(lambda: export(server, server.create())).reason == "EXPORT_KEY_MISSING"
    assert refusal(lambda: import_(server, b"")).reason == "EXPORT_KEY_MISSING"


def test_the_largest_export_fits_into_a_request(start):
    server = start(session_key=KEY)
    session = server.create()
    size = len(export(server, session))
    server.server.table.get(session).transcript.extend([1] * (((1 << 20) - 256 - size) // 2))
    assert import_(server, export(server, session)).position > 500_000


def test_imported_sessions_count_against_the_memory_budget(start):
    server = start(session_key=KEY, sessions=SessionsConfig(budget_bytes=300_000))
    session = server.create()
    server.server.table.get(session).transcript.extend([1] * 100_000)
    blob = export(server, session)
    copies = [import_(server, blob).id for _ in range(3)]
    assert [kept.id for kept in server.server.table] == copies[-1:]
