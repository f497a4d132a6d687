"""Calls of SessionService on a running server, a clock that tests set, and small helpers for both."""

from __future__ import annotations

from gruve.v1 import sampling_pb2 as s
from gruve.v1 import session_pb2 as p
from serving import PATIENCE_S

KEY = b"a key that every server shares"


def get(server, session_id, **fields):
    return server.sessions.GetSession(p.GetSessionRequest(session_id=session_id, **fields))


def listed(server, **fields):
    """The ids of all pages."""
    request = p.ListSessionsRequest(**fields)
    while True:
        response = server.sessions.ListSessions(request)
        yield [session.id for session in response.sessions]
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def delete(server, session_id):
    return server.sessions.DeleteSession(p.DeleteSessionRequest(session_id=session_id))


def seeded(seed, **more):
    return s.SamplingParameters(seed=seed, **more)


def fork(server, session, *seeds):
    branches = [p.ForkBranch(seed=seed) for seed in seeds]
    return server.sessions.ForkSession(p.ForkSessionRequest(session_id=session, branches=branches)).sessions


def rewind(server, session, to, **fields):
    request = p.RewindSessionRequest(session_id=session, to_position=to, **fields)
    return server.sessions.RewindSession(request).session


def export(server, session):
    return server.sessions.ExportSession(p.ExportSessionRequest(session_id=session)).blob


def import_(server, blob, **fields):
    return server.sessions.ImportSession(p.ImportSessionRequest(blob=blob, **fields)).session


def stop(server):
    server.stop().result(PATIENCE_S)


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


class Clock:
    def __init__(self):
        self.now_s = 1_700_000_000.0

    def __call__(self):
        return self.now_s
