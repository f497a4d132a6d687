"""GenerationService: Generate, Converse, StartConversation, Control and Score."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from gruve.engine.sequence import FinishReason
from gruve.receipt.signing import Sign
from gruve.serve.callers.ledger import Ledger
from gruve.serve.calls.access_log import current_call
from gruve.serve.messages import logprobs_message
from gruve.serve.models.hosts import ModelHosts
from gruve.serve.streams.conversation import Conversation
from gruve.serve.streams.opening import Streams
from gruve.serve.streams.scoring import score
from gruve.serve.streams.steering import listen, steer
from gruve.serve.streams.stream import Stream
from gruve.serve.validation import inside
from gruve.serve.validation_converse import MAX_CREDIT, validate_credit, validate_start
from gruve.serve.validation_generate import validate_generate, validate_score, validate_score_content
from gruve.sessions.opening import GenerationOpener
from gruve.v1 import generation_pb2, generation_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
ENTRIES_AT_ONCE = 1_024
"""How many log-probabilities are converted before streams get their turn."""


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serves `gruve.v1.GenerationService`."""

    def __init__(self, models: ModelHosts, opener: GenerationOpener, ledger: Ledger, sign: Sign | None = None) -> None:
        """`ledger` has what tenants use of their limits; `sign` signs receipts, None leaves them unsigned."""
        self.streams = Streams(models, opener, ledger, sign)
        self._models = models
        self._max_ttl_s = opener.persistence.config.idle_ttl_s

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams a generation."""
        stream = await self.streams.open(validate_generate(request, context.time_remaining(), self._max_ttl_s))
        try:
            async for message in stream.messages():
                yield message
            await _abort_overdue(stream, context)
        finally:
            stream.leave()

    async def Converse(
        self, request_iterator: AsyncIterator[generation_pb2.ConverseRequest], context: Context
    ) -> AsyncIterator[generation_pb2.ConverseResponse]:
        """Streams a generation that its client steers."""
        request, credit = validate_start(await anext(request_iterator, None))
        with inside("start.generate"):
            validated = validate_generate(request, context.time_remaining(), self._max_ttl_s, credit)
            stream = await self.streams.open(validated)
        assert isinstance(stream, Conversation)  # noqa: S101 - the request has credit
        listening = asyncio.create_task(listen(stream, request_iterator))
        try:
            async for response in stream.responses():
                yield response
            await _abort_overdue(stream, context)
        finally:
            listening.cancel()
            stream.leave()

    async def StartConversation(
        self, request: generation_pb2.StartConversationRequest, context: Context
    ) -> AsyncIterator[generation_pb2.StartConversationResponse]:
        """Streams a generation that `Control` steers."""
        credit = validate_credit(request, MAX_CREDIT)
        with inside("generate"):
            validated = validate_generate(request.generate, context.time_remaining(), self._max_ttl_s, credit)
            stream = await self.streams.open(validated)
        assert isinstance(stream, Conversation)  # noqa: S101 - the request has credit
        try:
            async for response in stream.responses():
                if response.HasField("tokens"):
                    yield generation_pb2.StartConversationResponse(tokens=response.tokens)
                else:  # a refusal goes to the caller of `Control`
                    yield generation_pb2.StartConversationResponse(control_applied=response.control_applied)
            await _abort_overdue(stream, context)
        finally:
            stream.leave()

    async def Control(self, request: generation_pb2.ControlRequest, context: Context) -> generation_pb2.ControlResponse:
        """Steers a conversation."""
        conversation = self.streams.find(request.session_id, request.generation_id)
        current_call().session_id = request.session_id
        with inside("control"):
            applied = await steer(conversation, request.control)
        return generation_pb2.ControlResponse(applied=applied)

    async def Score(self, request: generation_pb2.ScoreRequest, context: Context) -> generation_pb2.ScoreResponse:
        """Measures how likely a text is."""
        async with self._models.use(request.model) as host:
            tokenizer, digest = host.model.tokenizer, host.model.digest
            ids = await validate_score_content(request).tokens(tokenizer)
            window, alternatives = validate_score(request, len(ids))
            facts = current_call()
            facts.model, facts.prompt_tokens = host.model.name, len(ids)
            reservation = self.streams.reserve()
            try:
                reservation.reserve_tokens(len(ids), time.monotonic())
                scored = await score(host, ids, window, alternatives or 0)
            finally:
                reservation.close(reservation.tokens, time.monotonic())
        nats = -float(np.sum(np.array([entry.logprob for entry in scored], dtype=np.float64)))
        per_token = nats / len(ids)
        response = generation_pb2.ScoreResponse(
            token_count=len(ids),
            nats=nats,
            nats_per_token=per_token,
            bits_per_token=per_token / math.log(2.0),
            model_digest=digest,
            numerics_id=host.numerics_id,
        )
        if alternatives is not None:
            response.token_ids.extend(ids)
            for at in range(0, len(scored), ENTRIES_AT_ONCE):
                entries = scored[at : at + ENTRIES_AT_ONCE]
                response.logprobs.extend(logprobs_message(entry, tokenizer.texts) for entry in entries)
                await asyncio.sleep(0)
        return response


async def _abort_overdue(stream: Stream, context: Context) -> None:
    """Answers a call whose generation was ended by its deadline."""
    if stream.finish is FinishReason.DEADLINE:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline came; resume from next_position")
