"""SessionService: creates, shows, lists, forks, rewinds, exports, imports and deletes sessions."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from typing import Any

import grpc

from gruve.errors import (
    ExportKeyMissing,
    GruveError,
    InvalidField,
    ModelChanged,
    ModelError,
    PositionMismatch,
)
from gruve.model.config import MAX_VOCABULARY_SIZE
from gruve.serve import messages, validation
from gruve.serve.callers.identity import current_identity
from gruve.serve.callers.ledger import Ledger
from gruve.serve.models.hosts import ModelHosts
from gruve.serve.paging import MAX_PAGE_BYTES, page_size, page_start, page_token
from gruve.sessions.encoding import content_bytes, unpack_head
from gruve.sessions.export import export_session, import_session
from gruve.sessions.generations import make_continuable
from gruve.sessions.persistence import NEW_SESSION_BYTES, NEW_SESSION_WAIT_S, Persistence
from gruve.sessions.record import Generation, Session
from gruve.sessions.rewind import rewind
from gruve.sessions.store import SessionSummary
from gruve.v1 import generation_pb2, session_pb2, session_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
DEFAULT_TRANSCRIPT_PAGE, MAX_TRANSCRIPT_PAGE = 4_096, 65_536
TRANSCRIPT_PAGE = re.compile(r"\d{1,9}")
LIST_PAGE = re.compile(r"0x[01]\.[0-9a-f]{1,13}p\+\d{1,2}/[a-z2-7]{1,128}")
DEFAULT_LIST_PAGE, MAX_LIST_PAGE = 100, 1_000
MAX_BRANCHES = 64
ENVELOPE_BYTES = 256
"""The maximum size of an import request without the exported session."""
LOCATIONS = {"": session_pb2.SESSION_LOCATION_MEMORY, "store": session_pb2.SESSION_LOCATION_STORE}
"""By the places that `Persistence.read` names. Any other place is another server."""


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Serves `gruve.v1.SessionService`."""

    def __init__(
        self,
        models: ModelHosts,
        persistence: Persistence,
        ledger: Ledger,
        export_key: bytes | None,
        max_request_bytes: int,
    ) -> None:
        """`ledger` knows what sessions a tenant may have. Without `export_key`, export and import are refused."""
        self._models = models
        self._persistence = persistence
        self._ledger = ledger
        self._export_key = export_key
        self._max_blob_bytes = max_request_bytes - ENVELOPE_BYTES

    async def CreateSession(
        self,
        request: session_pb2.CreateSessionRequest,
        context: Context,
    ) -> session_pb2.CreateSessionResponse:
        """Creates an empty session."""
        if not request.HasField("session"):
            raise InvalidField("session", "absent; it must name a model")
        ttl_s = validation.validate_ttl(request.session, "session.idle_ttl", self._persistence.config.idle_ttl_s)
        async with self._models.use(request.session.model) as host:
            await self._check_quota(1, NEW_SESSION_BYTES)
            session = self._persistence.create(host.model.name, host.model.digest, host.numerics_id, ttl_s, _owner())
        await self._persistence.wait_durable(session, NEW_SESSION_WAIT_S)
        return session_pb2.CreateSessionResponse(session=self._message(session))

    async def GetSession(
        self,
        request: session_pb2.GetSessionRequest,
        context: Context,
    ) -> session_pb2.GetSessionResponse:
        """Shows a session and a page of its transcript."""
        size = page_size(request, DEFAULT_TRANSCRIPT_PAGE, MAX_TRANSCRIPT_PAGE, minimum=0)
        session, place = await self._persistence.read(request.session_id, _owner())
        start = page_start(request.page_token, TRANSCRIPT_PAGE)
        first = int(start[0]) if start else 0
        after = max(first, min(first + size, session.position))
        response = session_pb2.GetSessionResponse(session=self._message(session, place), position=first)
        if size:
            generations, after = self._generations(session, response.session.in_use, first, after)
            tokens = session.transcript[first:after].tolist()
            response.token_ids.extend(tokens)
            response.text = await self._text(session, tokens)
            response.generations.extend(generations)
            if after < session.position:
                response.next_page_token = page_token(str(after))
        return response

    async def ListSessions(
        self,
        request: session_pb2.ListSessionsRequest,
        context: Context,
    ) -> session_pb2.ListSessionsResponse:
        """Lists sessions, the latest created first, a page at a time."""
        size = page_size(request, DEFAULT_LIST_PAGE, MAX_LIST_PAGE, minimum=1)
        start = page_start(request.page_token, LIST_PAGE)
        before = (float.fromhex(start[0]), start[1]) if start else None
        found = await self._persistence.page(request.model, before, size + 1, _owner())
        response = session_pb2.ListSessionsResponse()
        size_bytes = 0
        for last, place in found[:size]:
            response.sessions.append(self._message(last, place))
            size_bytes += response.sessions[-1].ByteSize()
            if size_bytes > MAX_PAGE_BYTES:
                break
        if len(response.sessions) < len(found):
            response.next_page_token = page_token(last.created_s.hex(), last.id)
        return response

    async def DeleteSession(
        self,
        request: session_pb2.DeleteSessionRequest,
        context: Context,
    ) -> session_pb2.DeleteSessionResponse:
        """Deletes a session."""
        await self._persistence.delete(request.session_id, _owner())
        return session_pb2.DeleteSessionResponse()

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.ForkSessionResponse:
        """Forks a session into branches."""
        validation.check_size("branches", len(request.branches), 1, MAX_BRANCHES, "branches")
        seeds = [branch.seed if branch.HasField("seed") else secrets.randbits(64) for branch in request.branches]
        async with self._persistence.use(request.session_id, _owner()) as session:
            await self._check_quota(len(seeds), len(seeds) * content_bytes(session))
            branches = self._persistence.fork(session, seeds)
        await asyncio.gather(*(self._persistence.wait_durable(branch, NEW_SESSION_WAIT_S) for branch in branches))
        return session_pb2.ForkSessionResponse(sessions=[self._message(branch) for branch in branches])

    async def RewindSession(
        self, request: session_pb2.RewindSessionRequest, context: Context
    ) -> session_pb2.RewindSessionResponse:
        """Rewinds a session."""
        if request.to_position < 1:
            raise InvalidField("to_position", "0 would take back the start token; at least 1")
        async with self._persistence.use(request.session_id, _owner()) as session:
            async with self._models.use(session.model, session.digest) as host:
                make_continuable(session, host.model, host.numerics_id)
            if request.to_position > session.position:
                raise PositionMismatch(
                    f"to_position is {request.to_position}; the session's position is {session.position}",
                    position=session.position,
                )
            rewind(session, request.to_position, request.seed if request.HasField("seed") else None)
            await self._persistence.wait_before_send(session, session.position)
        return session_pb2.RewindSessionResponse(session=self._message(session))

    async def ExportSession(
        self, request: session_pb2.ExportSessionRequest, context: Context
    ) -> session_pb2.ExportSessionResponse:
        """Exports a session as one signed blob."""
        key = self._lasting_key()
        async with self._persistence.use(request.session_id, _owner()) as session:
            return session_pb2.ExportSessionResponse(blob=export_session(session, key, self._max_blob_bytes))

    async def ImportSession(
        self, request: session_pb2.ImportSessionRequest, context: Context
    ) -> session_pb2.ImportSessionResponse:
        """Creates a session from an exported one."""
        longest_s = self._persistence.config.idle_ttl_s
        ttl_s = validation.validate_ttl(request, "idle_ttl", longest_s)
        exported = import_session(request.blob, self._lasting_key())
        _, version = self._models.find(exported.model, exported.digest)
        if exported.digest != version.digest:
            raise ModelChanged(
                f"the session was exported from model digest {exported.digest[:16]}; "
                f"{exported.model!r} here has {version.digest[:16]}",
                session_digest=exported.digest,
                model_digest=version.digest,
            )
        ttl_s = min(exported.idle_ttl_s, longest_s) if ttl_s is None else ttl_s
        await self._check_quota(1, content_bytes(exported))
        session = self._persistence.create(exported.model, exported.digest, exported.numerics_id, ttl_s, _owner())
        self._persistence.table.fill(session, exported)
        await self._persistence.wait_durable(session, NEW_SESSION_WAIT_S)
        return session_pb2.ImportSessionResponse(session=self._message(session))

    async def _check_quota(self, new: int, new_bytes: int) -> None:
        """Raises `LimitExceeded` unless the caller may have so many more sessions, and bytes in the store."""
        bounds = self._ledger.session_bounds(current_identity().limits)
        await self._persistence.check_quota(_owner(), new, new_bytes, bounds)

    def _lasting_key(self) -> bytes:
        """The key that signs exported sessions. Raises `ExportKeyMissing`."""
        if self._export_key is None:
            raise ExportKeyMissing("this server has no lasting key; it needs GRUVE_EXPORT_KEY or GRUVE_SESSION_KEY")
        return self._export_key

    def _message(self, entry: Session | SessionSummary, place: str = "") -> session_pb2.Session:
        """Describes a session. `place` says where it is, as `Persistence.read` does: "" is this server's memory."""
        session = unpack_head(entry) if isinstance(entry, SessionSummary) else entry
        message = session_pb2.Session(
            id=session.id,
            model=session.model,
            model_digest=session.digest,
            numerics_id=session.numerics_id,
            position=entry.position,
            create_time=messages.timestamp(session.created_s),
            update_time=messages.timestamp(session.used_s),
            expire_time=messages.timestamp(session.used_s + session.idle_ttl_s),
            idle_ttl=messages.duration(session.idle_ttl_s),
            location=LOCATIONS.get(place, session_pb2.SESSION_LOCATION_ELSEWHERE),
            in_use=session.in_use or place not in LOCATIONS,
        )
        if session.sampling is not None:
            message.sampling.CopyFrom(messages.sampling_message(session.sampling, self._vocabulary_size(session)))
        if not place and self._persistence.is_behind(session):
            message.durable_position = max(0, session.store_progress.durable_position - 1)
        return message

    def _generations(
        self, session: Session, in_use: bool, first: int, after: int
    ) -> tuple[list[session_pb2.Generation], int]:
        """The generations that begin from `first` on and before `after` and fit on a page, and where the page ends."""
        listed: list[session_pb2.Generation] = []
        size_bytes = 0
        for generation in session.generations:
            begins = generation.prompt_position
            if begins < first:
                continue
            if begins >= after and after < session.position:
                break
            listed.append(self._generation(session, in_use, generation))
            size_bytes += listed[-1].ByteSize()
            if size_bytes > MAX_PAGE_BYTES and begins > first:
                return [g for g in listed if g.prompt_position < begins], begins
        return listed, after

    def _generation(self, session: Session, in_use: bool, generation: Generation) -> session_pb2.Generation:
        streaming = in_use and generation is session.generations[-1] and not generation.finished
        reason = None if streaming else generation.finish_reason
        return session_pb2.Generation(
            id=generation.id,
            prompt_position=generation.prompt_position,
            start_position=generation.start_position,
            next_position=generation.next_position,
            sampling=messages.sampling_message(generation.sampling, self._vocabulary_size(session)),
            max_tokens=generation.max_tokens,
            finish_reason=messages.FINISH_REASONS[reason] if reason else generation_pb2.FINISH_REASON_UNSPECIFIED,
            finished=generation.finished,
            model_digest=generation.digest or session.digest,
            numerics_id=generation.numerics_id or session.numerics_id,
            create_time=messages.timestamp(generation.created_s),
        )

    async def _text(self, session: Session, tokens: list[int]) -> str:
        """The tokens' text; empty if their model or its tokenizer is no longer served.

        Raises `LimitExceeded` if there is no room for their model.
        """
        with contextlib.suppress(ModelError):
            async with self._models.use(session.model, session.digest) as host:
                if session.tokenizer_digest in ("", host.model.tokenizer_digest):
                    return host.model.tokenizer.decode(tokens)
        return ""

    def _vocabulary_size(self, session: Session) -> int:
        """That of the session's model; the largest that there is if the model does not serve."""
        with contextlib.suppress(GruveError):
            config = self._models.find(session.model, session.digest)[1].config
            return MAX_VOCABULARY_SIZE if config is None else config.vocabulary_size
        return MAX_VOCABULARY_SIZE


def _owner() -> str:
    """The tenant whose sessions the request may use."""
    return current_identity().owner
