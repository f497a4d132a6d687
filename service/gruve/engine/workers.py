"""The worker threads of one engine. Knows nothing of what they do."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from gruve.engine.failures import new_incident

log = logging.getLogger(__name__)


class Workers:
    """Threads that all run the same function once."""

    def __init__(
        self,
        name: str,
        count: int,
        nice: int,
        run: Callable[[], None],
        *,
        on_last: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """`on_last` is called on the last thread after all have returned from `run`.

        If `run` or `on_last` raises, `on_failure` is called on that thread with the incident id, and `on_last` no more.
        `nice` is added to the threads' nice value.
        """
        self._nice = nice
        self._run = run
        self._on_last = on_last
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._unfinished = count
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]

    def start(self) -> None:
        """Starts all threads."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits until all threads that were started have ended."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        _lower_priority(self._nice)
        try:
            self._run()
            with self._lock:
                self._unfinished -= 1
                last = not self._unfinished
            if last:
                self._on_last()
        except Exception:
            log.exception("the engine's loop failed: incident %s", incident := new_incident())
            self._on_failure(incident)


def _lower_priority(nice: int) -> None:
    """Lets the threads that receive requests and send tokens go before this one: their work is short and waited for.

    Only on Linux does a thread have a nice value of its own.
    """
    if sys.platform == "linux" and nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
