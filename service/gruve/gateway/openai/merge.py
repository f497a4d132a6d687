"""Reads several generations at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from gruve.client import Chunk
from gruve.gateway.openai.answer import Choice


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Chunk | None], None]:
    """The chunks of all choices as they come. A choice's stream has `ended` with the last of them, which may be None.

    A choice is read again when its chunk was taken. Whatever ends the loop cancels the generations that still run.
    """
    if len(choices) == 1:  # needs no task
        async with contextlib.aclosing(_alone(choices[0])) as chunks:
            async for chunk in chunks:
                yield choices[0], chunk
        return
    waiting = {asyncio.ensure_future(_next(choice)): choice for choice in choices}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task].index):
                choice = waiting.pop(task)
                chunk = task.result()
                yield choice, chunk
                if not choice.stream.ended:
                    waiting[asyncio.ensure_future(_next(choice))] = choice
    finally:
        for task in waiting:
            task.cancel()
        for choice in choices:
            choice.stream.cancel()
        if waiting:
            await asyncio.wait(waiting)


async def _alone(choice: Choice) -> AsyncGenerator[Chunk | None, None]:
    async with choice.stream:
        while not choice.stream.ended:
            yield await _next(choice)


async def _next(choice: Choice) -> Chunk | None:
    chunk = await anext(choice.stream, None)
    if chunk is not None and choice.stream.ended:
        await anext(choice.stream, None)  # reads the call to its end, so that the server does not count it as cancelled
    return chunk
