"""SessionService: creates, shows, lists and deletes sessions."""

from __future__ import annotations

import base64
import binascii
import heapq
import re
from typing import Any

import grpc

from gruve.engine.sessions import Generation, Session, Sessions
from gruve.errors import InvalidField, NotYet
from gruve.serve import fields
from gruve.serve.hosting import Models
from gruve.v1 import generation_pb2, session_pb2, session_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
DEFAULT_TRANSCRIPT_PAGE, MAX_TRANSCRIPT_PAGE = 4_096, 65_536
TRANSCRIPT_PAGE = re.compile(r"\d{1,9}")
LIST_PAGE = re.compile(r"0x[01]\.[0-9a-f]{1,13}p\+\d{1,2}/[a-z2-7]{1,128}")
DEFAULT_LIST_PAGE, MAX_LIST_PAGE = 100, 1_000
MAX_PAGE_BYTES = 1 << 20
"""Of the sessions or generations on a page; clients take messages of 4 MiB where nothing else is configured."""


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves `gruve.v1.SessionService`."""

    def __init__(self, models: Models, sessions: Sessions) -> None:
        self._models = models
        self._sessions = sessions

    async def CreateSession(
        self,
        request: session_pb2.CreateSessionRequest,
        context: Context,
    ) -> session_pb2.CreateSessionResponse:
        """Creates an empty session."""
        if not request.HasField("session"):
            raise InvalidField("session", "absent; it must name a model")
        hosted = self._models.get(request.session.model)
        ttl_s = fields.ttl_of(request.session, "session.idle_ttl", self._sessions.config.idle_ttl_s)
        session = self._sessions.create(hosted.model.name, hosted.model.digest, hosted.backend.numerics_id, ttl_s)
        return session_pb2.CreateSessionResponse(session=self._message(session))

    async def GetSession(
        self,
        request: session_pb2.GetSessionRequest,
        context: Context,
    ) -> session_pb2.GetSessionResponse:
        """Shows a session and a page of its transcript."""
        session = self._sessions.get(request.session_id)
        size = _page_size(request, DEFAULT_TRANSCRIPT_PAGE, MAX_TRANSCRIPT_PAGE, least=0)
        first = int(_page_start(request.page_token, TRANSCRIPT_PAGE)[0] or 0)
        after = max(first, min(first + size, session.position))
        response = session_pb2.GetSessionResponse(session=self._message(session), position=first)
        if size:
            generations, after = self._generations(session, first, after)
            tokens = session.transcript[first:after].tolist()
            response.token_ids.extend(tokens)
            response.text = self._models.get(session.model).model.tokenizer.decode(tokens)
            response.generations.extend(generations)
            if after < session.position:
                response.next_page_token = _page_token(str(after))
        return response

    async def ListSessions(
        self,
        request: session_pb2.ListSessionsRequest,
        context: Context,
    ) -> session_pb2.ListSessionsResponse:
        """Lists sessions, the latest created first, a page at a time."""
        size = _page_size(request, DEFAULT_LIST_PAGE, MAX_LIST_PAGE, least=1)
        created, last_id = (*_page_start(request.page_token, LIST_PAGE), "")[:2]
        before = (float.fromhex(created), last_id) if created else None
        matching = heapq.nlargest(
            size + 1,
            (
                s
                for s in self._sessions
                if request.model in ("", s.model) and (before is None or (s.created_s, s.id) < before)
            ),
            key=lambda s: (s.created_s, s.id),
        )
        response = session_pb2.ListSessionsResponse()
        size_bytes = 0
        for last in matching[:size]:
            response.sessions.append(self._message(last))
            size_bytes += response.sessions[-1].ByteSize()
            if size_bytes > MAX_PAGE_BYTES:
                break
        if len(response.sessions) < len(matching):
            response.next_page_token = _page_token(last.created_s.hex(), last.id)
        return response

    async def DeleteSession(
        self,
        request: session_pb2.DeleteSessionRequest,
        context: Context,
    ) -> session_pb2.DeleteSessionResponse:
        """Forgets a session."""
        self._sessions.delete(self._sessions.get(request.session_id))
        return session_pb2.DeleteSessionResponse()

    async def ForkSession(self, request: Any, context: Context) -> Any:
        """Not served by this release."""
        raise NotYet("ForkSession is in the contract; this release does not serve it yet")

    async def RewindSession(self, request: Any, context: Context) -> Any:
        """Not served by this release."""
        raise NotYet("RewindSession is in the contract; this release does not serve it yet")

    async def ExportSession(self, request: Any, context: Context) -> Any:
        """Not served by this release."""
        raise NotYet("ExportSession is in the contract; this release does not serve it yet")

    async def ImportSession(self, request: Any, context: Context) -> Any:
        """Not served by this release."""
        raise NotYet("ImportSession is in the contract; this release does not serve it yet")

    def _message(self, session: Session) -> session_pb2.Session:
        message = session_pb2.Session(
            id=session.id,
            model=session.model,
            model_digest=session.digest,
            numerics_id=session.numerics_id,
            position=session.position,
            create_time=fields.timestamp(session.created_s),
            update_time=fields.timestamp(session.used_s),
            expire_time=fields.timestamp(session.used_s + session.idle_ttl_s),
            idle_ttl=fields.duration(session.idle_ttl_s),
            location=session_pb2.SESSION_LOCATION_MEMORY,
            in_use=session.in_use,
        )
        if session.sampling is not None:
            message.sampling.CopyFrom(fields.sampling_message(session.sampling, self._size(session)))
        return message

    def _generations(self, session: Session, first: int, after: int) -> tuple[list[session_pb2.Generation], int]:
        """The generations that begin from `first` to before `after`, and where the page ends that they still fit on."""
        listed: list[session_pb2.Generation] = []
        size_bytes = 0
        for generation in session.generations:
            begins = generation.prompt_position
            if begins < first:
                continue
            if begins >= after and after < session.position:
                break
            listed.append(self._generation(session, generation))
            size_bytes += listed[-1].ByteSize()
            if size_bytes > MAX_PAGE_BYTES and begins > first:
                return [g for g in listed if g.prompt_position < begins], begins
        return listed, after

    def _generation(self, session: Session, generation: Generation) -> session_pb2.Generation:
        streaming = session.in_use and generation is session.generations[-1] and not generation.finished
        reason = None if streaming else generation.finish_reason
        return session_pb2.Generation(
            id=generation.id,
            prompt_position=generation.prompt_position,
            start_position=generation.start_position,
            next_position=generation.next_position,
            sampling=fields.sampling_message(generation.sampling, self._size(session)),
            max_tokens=generation.max_tokens,
            finish_reason=fields.FINISH[reason] if reason else generation_pb2.FINISH_REASON_UNSPECIFIED,
            finished=generation.finished,
            model_digest=session.digest,
            numerics_id=session.numerics_id,
            create_time=fields.timestamp(generation.created_s),
        )

    def _size(self, session: Session) -> int:
        return self._models.get(session.model).model.tokenizer.size


def _page_size(request: Any, default: int, most: int, least: int) -> int:
    if not request.HasField("page_size"):
        return default
    size: int = request.page_size
    if size < least:
        raise InvalidField("page_size", f"{size} is below {least}")
    return min(size, most)


def _page_token(*parts: str) -> str:
    return base64.urlsafe_b64encode("/".join(parts).encode()).decode()


def _page_start(token: str, kind: re.Pattern[str]) -> tuple[str, ...]:
    """The parts of a page token, none for the first page; refuses what no page has given."""
    if not token:
        return ("",)
    try:
        text = base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii")
    except (binascii.Error, UnicodeError):
        text = ""
    if not kind.fullmatch(text):
        raise InvalidField("page_token", f"{token[:64]!r} is not a token that this rpc has given")
    return tuple(text.split("/"))
