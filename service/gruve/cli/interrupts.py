"""Handles Ctrl-C without breaking off an update of a training run, or gRPC while it holds a lock."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruve.client import TokenStream


def _nothing() -> None:
    pass


@contextmanager
def deferred_interrupt(act: Callable[[], None] = _nothing) -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C is only noted, and calls `act`; the second one takes effect at once.

    Yields a function that tells whether one was noted. Only the main thread may enter it, as only it receives signals.
    """
    noted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.signal(signal.SIGINT, before)
        act()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupt_cancels(stream: TokenStream) -> Iterator[None]:
    """Within it Ctrl-C cancels the stream, whose reader then ends; the block ends with `KeyboardInterrupt`.

    If the signal raised its exception in the reader, it could do so just after gRPC took a lock. The lock would stay
    locked and the command would hang. A stream that waits for a connection is left at once.
    """
    if threading.current_thread() is not threading.main_thread():  # it receives no signals
        yield
        return

    def cancel() -> None:
        if stream.waiting:
            raise KeyboardInterrupt
        threading.Thread(target=stream.cancel, daemon=True).start()

    with deferred_interrupt(cancel) as interrupted:
        yield
    if interrupted():
        raise KeyboardInterrupt
