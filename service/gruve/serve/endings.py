"""The signals that end a server, and a start that they cut short."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Literal

Ending = Literal["drain", "hand_over"]
"""Whether running streams may continue for a while first."""


@contextlib.contextmanager
def signals() -> Iterator[asyncio.Queue[Ending]]:
    """A queue that receives an ending for each SIGTERM, SIGHUP and SIGINT."""
    loop = asyncio.get_running_loop()
    endings: asyncio.Queue[Ending] = asyncio.Queue()
    handled: dict[signal.Signals, Ending] = {signal.SIGTERM: "drain", signal.SIGINT: "hand_over"}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        handled[signal.SIGHUP] = "drain"
    for number, ending in handled.items():
        loop.add_signal_handler(number, endings.put_nowait, ending)
    try:
        yield endings
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def run_until_ending(start: Coroutine[None, None, None], endings: asyncio.Queue[Ending]) -> Ending:
    """Runs `start` and waits for an ending, which cancels `start` if it still runs. Raises what `start` raises.

    After an ending it does not matter any more how `start` went: the same signal may have ended another process that it
    waited for.
    """
    starting, ending = asyncio.create_task(start), asyncio.create_task(endings.get())
    try:
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting
        return await ending
    finally:
        starting.cancel()
        ending.cancel()
