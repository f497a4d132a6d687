"""Calls of SessionService on a running server, and a clock that tests set."""

from __future__ import annotations

from gruve.v1 import session_pb2 as p


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


class Clock:
    def __init__(self):
        self.now_s = 1_700_000_000.0

    def __call__(self):
        return self.now_s
