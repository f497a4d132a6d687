"""Opens a generation: the one call of a stream into the sessions, and the handle through which the stream uses one.

Opening finds or creates the session, waits for an older stream of it to end, leases the session, and begins or resumes
the generation. The handle then stands for the lease until the stream ends.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

from gruve.errors import GruveError, SessionElsewhere
from gruve.model.repository import Model
from gruve.model.tokenizer import Tokenizer
from gruve.sessions.encoding import content_bytes
from gruve.sessions.generation_request import GenerationRequest, check_same_request, limit_top_k
from gruve.sessions.generations import OpenedGeneration, abandon, most_growth_bytes, open_generation
from gruve.sessions.persistence import NEW_SESSION_BYTES, Persistence, SessionBounds
from gruve.sessions.record import Session


@dataclasses.dataclass(frozen=True, slots=True)
class ExistingSession:
    """Continue this session."""

    session_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class NewSession:
    """Create a session of this model."""

    model: str
    idle_ttl_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class NoSession:
    """Generate with this model, without a session that outlives the generation."""

    model: str


Source = ExistingSession | NewSession | NoSession


class Prompt(Protocol):
    """A prompt whose tokens depend on the model's tokenizer."""

    async def tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The prompt's tokens. Raises `InvalidField` or `UnknownCharacter`."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRequest:
    """A validated request to open a generation. `generation` has no prompt yet."""

    source: Source
    prompt: Prompt
    generation: GenerationRequest

    async def resolve(self, tokenizer: Tokenizer) -> GenerationRequest:
        """The request to generate with this tokenizer."""
        prompt = await self.prompt.tokens(tokenizer)
        sampling = limit_top_k(self.generation.sampling, tokenizer.size)
        return dataclasses.replace(self.generation, prompt=prompt, sampling=sampling)


class ServingModel(Protocol):
    """A model that is served, and the arithmetic that decodes it."""

    model: Model
    numerics_id: str
    """The id of everything that can change a bit of its results."""


class Models(Protocol):
    """The models that are served."""

    async def acquire(self, reference: str, digest: str = "") -> ServingModel:
        """The model that `reference` means; the version of `digest` while there is one. It stays until `release`.

        Raises a `ModelError`.
        """

    def release(self, served: Any) -> None:
        """Ends the use of a model, once for each `acquire`."""


class Viewer(Protocol):
    """The stream that shows a running generation."""

    leaving: bool
    """Whether it is only waiting for the engine to end its sequence."""

    def take_over(self) -> None:
        """Ends the stream because another one resumes its generation."""

    def lose(self, error: GruveError) -> None:
        """Ends the stream with an error, because its session is gone."""

    async def wait_ended(self) -> None:
        """Waits until the engine has ended its sequence and the session is free."""


class RunningGeneration:
    """An opened generation whose session is leased, until `close` or `abandon`."""

    def __init__(
        self, opened: OpenedGeneration, served: ServingModel, opener: GenerationOpener, created: Session | None
    ) -> None:
        self.opened = opened
        self.served = served
        """The model that decodes it, held until then."""
        self.session, self.generation = opened.session, opened.generation
        self.viewer: Viewer | None = None
        """The stream; set before the event loop runs anything else."""
        self._opener = opener
        self._created = created

    @property
    def max_transcript(self) -> int:
        """The maximum length of the transcript."""
        return self._opener.persistence.config.max_transcript_tokens

    def confirm(self) -> None:
        """Makes the generation one that tokens depend on, once the engine has taken its sequence."""
        if self.opened.begun:
            self.session.store_progress.events += 1
            self._opener.persistence.mark_dirty(self.session)

    def abandon(self) -> None:
        """Takes the opening back, if the engine refuses the sequence."""
        abandon(self.opened)
        self._opener.end(self)
        self._opener.persistence.mark_dirty(self.session)
        if self._created is not None:
            self._opener.persistence.discard(self._created)

    def close(self) -> None:
        """Frees the session. Call it once the engine has ended the sequence and its last progress was applied."""
        self._opener.end(self)
        self._opener.persistence.mark_dirty(self.session)

    async def wait_before_send(self, next_position: int, *, last: bool = False) -> int | None:
        """Waits until what the tokens before `next_position` depend on is durable.

        With `last` all of the session becomes something to wait for: the session's next generation depends on it, and
        a client that has received the end does not ask for the last tokens again. Returns and raises what
        `Persistence.wait_before_send` does.
        """
        if last and self.session.dirty:
            self.session.store_progress.events += 1
        return await self._opener.persistence.wait_before_send(self.session, next_position)

    async def release(self) -> None:
        """Waits a while until the closed session is written and another server may lease it."""
        await self._opener.persistence.release(self.session)


class GenerationOpener:
    """Opens the generations of one server."""

    def __init__(self, persistence: Persistence, models: Models) -> None:
        self.persistence = persistence
        self._models = models
        self._running: dict[str, RunningGeneration] = {}
        """By session id."""
        persistence.on_lost(self._lose)

    async def open(self, request: OpenRequest, tenant: str, bounds: SessionBounds | None) -> RunningGeneration:
        """Opens a generation in a session of the tenant; all of it or nothing.

        Raises `InvalidField`, `UnknownCharacter`, a `ModelError`, a `SessionError` or `StoreUnavailable`, and
        `LimitExceeded` if a new session or what a new generation may come to take would exceed `bounds`. A generation
        that is resumed was admitted when it began.
        """
        source = request.source
        if isinstance(source, ExistingSession):
            async with self.persistence.pin(source.session_id, tenant) as session:
                served = await self._models.acquire(session.model, _wanted_digest(session, request.generation))
                try:
                    generation = await request.resolve(served.model.tokenizer)
                    session = await self._wait_until_free(session, generation)
                    growth = most_growth_bytes(session, generation, served.model.config.state_bytes)
                    if session.generation(generation.generation_id) is None and bounds is not None:
                        await self.persistence.check_quota(tenant, 0, growth, bounds)
                        session = await self._wait_until_free(session, generation)
                    return self._open(session, served, generation, growth)
                except BaseException:
                    self._models.release(served)
                    raise
        served = await self._models.acquire(source.model)
        try:
            generation = await request.resolve(served.model.tokenizer)
            if isinstance(source, NoSession):
                return self._open_without_session(served, generation)
            growth = most_growth_bytes(None, generation, served.model.config.state_bytes)
            if bounds is not None:
                await self.persistence.check_quota(tenant, 1, NEW_SESSION_BYTES + growth, bounds)
            model, numerics_id = served.model, served.numerics_id
            session = self.persistence.create(model.name, model.digest, numerics_id, source.idle_ttl_s, tenant)
            return self._open(session, served, generation, growth, created=session)
        except BaseException:
            self._models.release(served)
            raise

    def _open_without_session(self, served: ServingModel, request: GenerationRequest) -> RunningGeneration:
        model, now_s = served.model, time.time()
        session = Session("", model.name, model.digest, served.numerics_id, 0.0, now_s, now_s)
        return self._open(session, served, request, 0)

    def _open(
        self,
        session: Session,
        served: ServingModel,
        request: GenerationRequest,
        growth: int,
        created: Session | None = None,
    ) -> RunningGeneration:
        """Opens the generation; `growth` is the most by which the session's stored size grows until it ends."""
        table = self.persistence.table
        table.lease(session)
        if session.id:
            session.promised_bytes = content_bytes(session) + growth
        try:
            opened = open_generation(
                session,
                request,
                served.model,
                served.numerics_id,
                now_s=time.time(),
                max_transcript=table.config.max_transcript_tokens,
            )
        except BaseException:
            session.promised_bytes = 0
            table.release(session)
            if created is not None:
                self.persistence.discard(created)
            raise
        running = RunningGeneration(opened, served, self, created)
        if session.id:
            self._running[session.id] = running
        return running

    async def _wait_until_free(self, session: Session, request: GenerationRequest) -> Session:
        """Ends the session's stream if the request resumes its generation, and waits for a stream that is ending.

        Any other stream continues, and the lease will raise `SessionBusy`. Returns the session, which may have been
        replaced meanwhile; raises `SessionExpired` if it is gone.
        """
        while (running := self._running.get(session.id)) is not None and running.viewer is not None:
            if running.generation.id == request.generation_id:
                check_same_request(session, running.generation, request)
                running.viewer.take_over()
            elif not running.viewer.leaving:
                break
            await running.viewer.wait_ended()
        return self.persistence.table.get(session.id, session.tenant)

    def end(self, running: RunningGeneration) -> None:
        """Ends the lease of a running generation's session, and the use of its model."""
        if self._running.get(running.session.id) is running:
            del self._running[running.session.id]
        running.session.promised_bytes = 0
        self.persistence.table.release(running.session)
        self._models.release(running.served)

    def _lose(self, session: Session) -> None:
        """Ends the stream of a session that another server has taken."""
        running = self._running.get(session.id)
        if running is not None and running.session is session and running.viewer is not None:
            running.viewer.lose(SessionElsewhere(f"another server has taken session {session.id!r} over"))


def _wanted_digest(session: Session, request: GenerationRequest) -> str:
    """The digest of the model that continues a session: its own, unless a new generation is to be rebased."""
    return "" if request.rebase and session.generation(request.generation_id) is None else session.digest
