"""Gives a conversation its grants and controls: those of its own client, and those that come by `Control`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import grpc

from gruve.errors import GruveError, InvalidField
from gruve.serve.calls.status import internal_error
from gruve.serve.streams.conversation import Conversation
from gruve.serve.validation_converse import validate_control, validate_grant
from gruve.v1 import generation_pb2

HANG_UP_S = 0.5
"""How long to wait before the end of the requests counts. gRPC reports it in the same way for a client that has closed
its side and for one that is gone, and the call of the second ends soon after."""


async def listen(conversation: Conversation, requests: AsyncIterator[object]) -> None:
    """Reads grants and controls until the client sends no more. A message that is neither ends the call."""
    try:
        async for request in requests:
            tokens = validate_grant(request)
            if tokens is not None:
                conversation.grant(tokens)
                continue
            assert isinstance(request, generation_pb2.ConverseRequest)  # noqa: S101 - `validate_grant` checks it
            try:
                control = await validate_control(request, conversation.tokenizer)
            except GruveError as error:
                conversation.refuse_message(request.control_id, error)
            else:
                conversation.steer(control)
            await conversation.wait_for_room()
        await asyncio.sleep(HANG_UP_S)
        conversation.hang_up()
    except GruveError as error:
        conversation.break_off(error)
    except grpc.aio.BaseError:
        return  # the call has ended
    except Exception as error:  # noqa: BLE001 - the call must not wait for this task if it fails
        conversation.break_off(internal_error(error))


async def steer(
    conversation: Conversation, message: generation_pb2.ConverseRequest
) -> generation_pb2.ControlApplied | None:
    """Carries out a `Control` call. Returns where the control took effect, once that is durable; None for a grant.

    Raises `InvalidField` and `UnknownCharacter` for a message that is no valid control, `LimitExceeded` if too many
    controls are unanswered, the errors that refuse a control, `GenerationUnknown` if the stream ends before, and what
    `RunningGeneration.wait_before_send` raises.
    """
    if message.WhichOneof("message") == "start":
        raise InvalidField("message", "is a start; it must be a grant or a control")
    if (tokens := validate_grant(message)) is not None:
        conversation.grant(tokens)
        return None
    control = await validate_control(message, conversation.tokenizer)
    conversation.check_can_steer()
    reply: asyncio.Future[generation_pb2.ControlApplied] = asyncio.get_running_loop().create_future()
    try:
        conversation.steer(dataclasses.replace(control, message=message, reply=reply))
    except Exception as error:
        conversation.break_off(internal_error(error))  # what it left half done must not be streamed
        raise
    applied = await reply
    await conversation.running.wait_before_send(applied.position)
    return applied
