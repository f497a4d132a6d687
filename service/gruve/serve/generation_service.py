"""GenerationService: opens generations, streams them, and scores texts."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from gruve.engine.sequence import Admission, FinishReason, Progress, TokenLogprobs
from gruve.errors import Draining, EngineFailed, GruveError, InvalidField, SessionElsewhere
from gruve.model.sampling import SamplingParameters
from gruve.serve import validation
from gruve.serve.converse import Conversation
from gruve.serve.model_host import ModelHost, ModelHosts
from gruve.serve.steering import start_of
from gruve.serve.streams import Stream
from gruve.sessions.generations import GenerationRequest, OpenedGeneration, abandon, check_same, open_generation
from gruve.sessions.persistence import Persistence
from gruve.sessions.record import START_TOKEN, Generation, Session
from gruve.v1 import generation_pb2, generation_pb2_grpc

WINDOWS_AT_ONCE = 16
"""How many windows of a text are measured side by side."""
ENTRIES_AT_ONCE = 1_024
"""How many log-probabilities are packed before streams get their turn."""
MEASURING = SamplingParameters(temperature=0.0)


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serves `gruve.v1.GenerationService`."""

    def __init__(self, models: ModelHosts, persistence: Persistence) -> None:
        self._models = models
        self._persistence = persistence
        self._table = persistence.table
        self._streams: dict[str, Stream] = {}
        """By session, those that the engine still decodes."""
        self._conversations: set[Conversation] = set()

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams a generation; see the contract."""
        times = _MessageTimes()
        host, stream = await self._accept(request, context)
        try:
            async for message in stream.messages():
                await self._allow(stream, message)
                times.observe(host, message)
                yield message
            await _end_overdue(stream, context)
        finally:
            self._cut(host, stream)

    async def Converse(
        self,
        request_iterator: AsyncIterator[generation_pb2.ConverseRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[generation_pb2.ConverseResponse]:
        """Streams a generation that its client steers; see the contract."""
        times = _MessageTimes()
        request, credit = start_of(await anext(request_iterator, None))
        with validation.inside("start.generate"):
            host, stream = await self._accept(request, context, credit)
        assert isinstance(stream, Conversation)  # noqa: S101 - there is credit
        listening = asyncio.create_task(stream.listen(request_iterator))
        try:
            async for response in stream.responses():
                if response.HasField("tokens"):
                    await self._allow(stream, response.tokens)
                elif response.HasField("control_applied"):  # whoever hears of it may count on it
                    await self._persistence.wait_before_send(stream.opened.session, response.control_applied.position)
                times.observe(host, response.tokens)
                yield response
            await _end_overdue(stream, context)
        finally:
            listening.cancel()
            self._cut(host, stream)

    def hand_over(self) -> None:
        """Ends the conversations that no engine hands over, because they wait for their clients."""
        for stream in list(self._conversations):
            stream.let_go(FinishReason.HANDED_OVER)

    async def Score(
        self,
        request: generation_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> generation_pb2.ScoreResponse:
        """Measures a text; see the contract."""
        host = self._models.get(request.model)
        tokenizer = host.model.tokenizer
        ids = await validation.prompt_of(request, tokenizer, oneof="content")
        if not ids:
            raise InvalidField("content", "absent; one of text and tokens must be set")
        window, alternatives = validation.measures_of(request, len(ids))
        scored = await _score(host, ids, window, alternatives or 0)
        nats = -float(np.sum(np.array([entry.logprob for entry in scored], dtype=np.float64)))
        per_token = nats / len(ids)
        response = generation_pb2.ScoreResponse(
            token_count=len(ids),
            nats=nats,
            nats_per_token=per_token,
            bits_per_token=per_token / math.log(2.0),
            model_digest=host.model.digest,
            numerics_id=host.backend.numerics_id,
        )
        if alternatives is not None:
            response.token_ids.extend(ids)
            for at in range(0, len(scored), ENTRIES_AT_ONCE):
                entries = scored[at : at + ENTRIES_AT_ONCE]
                response.logprobs.extend(validation.logprobs_message(entry, tokenizer.texts) for entry in entries)
                await asyncio.sleep(0)
        return response

    async def _accept(
        self,
        request: generation_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
        credit: int | None = None,
    ) -> tuple[ModelHost, Stream]:
        """The stream of a request, with `credit` one that is steered; raises what refuses it."""
        if request.WhichOneof("source") != "session_id":
            host, new_ttl_s = self._new_source(request)
            asked = await validation.generation_request(request, host.model.tokenizer, context.time_remaining())
            most_tokens = validation.tokens_per_message(request)
            return host, self._open(host, None, new_ttl_s, asked, most_tokens, credit)
        async with self._persistence.pin(request.session_id) as session:
            host = self._models.get(session.model)
            asked = await validation.generation_request(request, host.model.tokenizer, context.time_remaining())
            most_tokens = validation.tokens_per_message(request)
            session = await self._settle(host, session, asked)
            return host, self._open(host, session, None, asked, most_tokens, credit)

    def _new_source(self, request: generation_pb2.GenerateRequest) -> tuple[ModelHost, float | None]:
        """The model of a request that continues no session, and the time to live of one that is to be created."""
        source = request.WhichOneof("source")
        if source == "new_session":
            longest_s = self._table.config.idle_ttl_s
            ttl_s = validation.ttl_of(request.new_session, "new_session.idle_ttl", longest_s)
            return self._models.get(request.new_session.model), ttl_s or longest_s
        if source == "model":
            return self._models.get(request.model), None
        raise InvalidField("source", "absent; one of model, session_id and new_session must be set")

    async def _allow(self, stream: Stream, message: generation_pb2.GenerateResponse) -> None:
        """Lets a message go once what it depends on is durable, or writes into it how far that has come."""
        session = stream.opened.session
        if message.HasField("end") and session.dirty:
            # What comes next depends on all of it, and nobody who has heard the end asks for the last tokens again.
            session.store_progress.events += 1
        durable = await self._persistence.wait_before_send(session, message.position + len(message.token_ids))
        if durable is not None:
            message.durable_position = durable
        if message.end.finish_reason == generation_pb2.FINISH_REASON_HANDED_OVER:
            await self._persistence.release(session)

    def lose(self, session: Session) -> None:
        """Ends the stream of a session that another server has taken."""
        stream = self._streams.get(session.id)
        if stream is not None and stream.opened.session is session:
            stream.lose(SessionElsewhere(f"another server has taken session {session.id!r} over"))

    async def _settle(self, host: ModelHost, session: Session, asked: GenerationRequest) -> Session:
        """Takes over the session's open stream if this request resumes its generation, and waits for one that is
        on its way out; leaves any other alone, and the lease will say that the session is busy.

        Returns the session as it is then, or raises what `SessionTable.get` raises.
        """
        while (stream := self._streams.get(session.id)) is not None:
            if stream.generation.id == asked.generation_id:
                check_same(session, stream.generation, asked)
                stream.take_over()
                self._cut(host, stream)  # its own call may be waiting for a reader that is no more
            elif not stream.leaving:
                break
            await stream.ended.wait()
        return self._table.get(session.id)

    @staticmethod
    def _cut(host: ModelHost, stream: Stream) -> None:
        """Has the engine let go of a stream's sequence, if it has not; then `_ended` frees the session."""
        stream.leaving = True
        if stream.sequence_id is not None and not stream.ended.is_set():
            host.engine.cancel(stream.sequence_id)
        elif isinstance(stream, Conversation):
            stream.let_go()

    def _open(
        self,
        host: ModelHost,
        session: Session | None,
        new_ttl_s: float | None,
        asked: GenerationRequest,
        most_tokens: int,
        credit: int | None,
    ) -> Stream:
        """Leases the session, opens the generation and admits what is left to decode; all of it or nothing."""
        model, numerics_id = host.model, host.backend.numerics_id
        created = None
        if new_ttl_s is not None:
            session = created = self._persistence.create(model.name, model.digest, numerics_id, new_ttl_s)
        elif session is None:
            # A session that nobody keeps: it lives as long as its sequence.
            session = Session("", model.name, model.digest, numerics_id, 0.0, time.time(), time.time())
        self._table.lease(session)
        try:
            stream = self._begin(host, session, asked, most_tokens, credit)
        except BaseException:
            self._table.release(session)
            if created is not None:
                self._persistence.discard(created)
            raise
        if session.id and not stream.ended.is_set():
            self._streams[session.id] = stream
        return stream

    def _begin(
        self, host: ModelHost, session: Session, asked: GenerationRequest, most_tokens: int, credit: int | None
    ) -> Stream:
        """The stream of a generation that was begun or resumed on a leased session."""
        most_transcript = self._table.config.max_transcript_tokens
        opened = open_generation(
            session, asked, host.model, host.backend.numerics_id, now_s=time.time(), max_transcript=most_transcript
        )
        try:
            start = _start_message(host, session, opened.generation)
            if credit is not None:
                stream = self._converse(host, opened, start, most_tokens, credit)
            else:
                stream = Stream(
                    opened,
                    host.model.tokenizer,
                    start,
                    most_tokens,
                    lambda end: self._ended(host, end),
                    host.message_gap_s,
                )
                if opened.admission is not None:
                    admission = dataclasses.replace(opened.admission, max_pending_output=most_tokens)
                    stream.sequence_id = host.admit(admission, stream)
        except BaseException:
            abandon(opened)
            raise
        if opened.begun:
            session.store_progress.events += 1
            self._persistence.mark_dirty(session)
            host.metrics.observe_begin(opened.generation.start_position - opened.generation.prompt_position)
        return stream

    def _converse(
        self,
        host: ModelHost,
        opened: OpenedGeneration,
        start: generation_pb2.GenerationStart,
        most_tokens: int,
        credit: int,
    ) -> Stream:
        """A stream that is steered."""

        def ended(_: Stream) -> None:
            self._conversations.discard(stream)
            self._ended(host, stream)

        stream = Conversation(opened, host, start, most_tokens, ended, credit, self._table.config.max_transcript_tokens)
        stream.begin()
        self._conversations.add(stream)
        return stream

    def _ended(self, host: ModelHost, stream: Stream) -> None:
        """The engine has let go of a stream's sequence: the session is free again."""
        session = stream.opened.session
        if self._streams.get(session.id) is stream:
            del self._streams[session.id]
        self._table.release(session)
        self._persistence.mark_dirty(session)
        host.metrics.observe_end(stream.finish, stream.queue_s if stream.sequence_id is not None else None)


def _start_message(host: ModelHost, session: Session, generation: Generation) -> generation_pb2.GenerationStart:
    return generation_pb2.GenerationStart(
        generation_id=generation.id,
        session_id=session.id,
        model=host.model.name,
        model_digest=host.model.digest,
        numerics_id=host.backend.numerics_id,
        prompt_position=generation.prompt_position,
        start_position=generation.start_position,
        sampling=validation.sampling_message(generation.sampling, host.model.tokenizer.size),
        max_tokens=generation.max_tokens,
    )


class _MessageTimes:
    """Measures when the messages of one call come."""

    def __init__(self) -> None:
        self._arrived_s = time.monotonic()
        self._written_s: float | None = None

    def observe(self, host: ModelHost, message: generation_pb2.GenerateResponse) -> None:
        """Counts a message that is about to be written, if it has tokens."""
        if not message.token_ids:
            return
        now, before = time.monotonic(), self._written_s
        self._written_s = now
        host.metrics.observe_message(
            len(message.token_ids), now - self._arrived_s, None if before is None else now - before
        )


async def _end_overdue(stream: Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Answers a call whose deadline ended its generation."""
    if stream.finish is FinishReason.DEADLINE:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline came; resume from next_position")


class _Scored:
    """Collects the log-probabilities of one window."""

    def __init__(self) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self.error: GruveError | None = None
        self.done = asyncio.Event()

    def take(self, progress: Progress) -> None:
        """Hears from the engine; see `model_host.Listener`."""
        self.logprobs.extend(progress.logprobs)
        if progress.incident is not None:
            self.error = EngineFailed(progress.incident)
        elif progress.finish_reason is FinishReason.HANDED_OVER:
            self.error = Draining("the server is shutting down; nothing was measured")
        if progress.finish_reason is not None or self.error is not None:
            self.done.set()

    def fail(self, error: GruveError) -> None:
        """Hears that `take` has raised."""
        self.error = error
        self.done.set()


async def _score(host: ModelHost, ids: tuple[int, ...], window: int, alternatives: int) -> list[TokenLogprobs]:
    """Runs the text through the engine as forced tokens, each window from a zero state that reads the start token."""
    scored: list[list[TokenLogprobs]] = [[] for _ in range(0, len(ids), window)]
    turns = iter(range(len(scored)))

    async def measure() -> None:
        for turn in turns:
            scored[turn] = await _measure(host, ids[turn * window : (turn + 1) * window], alternatives)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(WINDOWS_AT_ONCE, len(scored))):
                group.create_task(measure())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [entry for piece in scored for entry in piece]


async def _measure(host: ModelHost, piece: tuple[int, ...], alternatives: int) -> list[TokenLogprobs]:
    """The log-probabilities of one window's tokens."""
    scored = _Scored()
    forced, start = np.array(piece, dtype=np.int32), np.array([START_TOKEN], dtype=np.int32)
    sequence_id = host.admit(Admission(MEASURING, start, 0, forced, max_tokens=0, logprobs=alternatives), scored)
    try:
        await scored.done.wait()
    finally:
        if not scored.done.is_set():
            host.engine.cancel(sequence_id)
    if scored.error is not None:
        raise scored.error
    return scored.logprobs
