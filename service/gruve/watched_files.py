"""Files of credentials: certificates, keys and key sets, which are read again when they have changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from gruve.errors import CredentialsBroken

log = logging.getLogger(__name__)
T = TypeVar("T")
Signature = tuple[int, int, int] | None
LOOK_S = 0.25
"""How often files are looked at, at most, if `seldom`. A look for each call would double what checking an API key
costs: 11 us instead of 5.5."""


class WatchedFiles(Generic[T]):
    """What `read` makes of files. A change that cannot be used leaves the last good content in use.

    May be used from any thread.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], *, seldom: bool = False) -> None:
        """Calls `read`, which reads the files and raises `CredentialsBroken` if they cannot be used."""
        self._paths = paths
        self._read = read
        self._seldom = seldom
        self._lock = threading.Lock()
        self._next_look_s = 0.0
        self._seen = self._signatures()
        self._content = read()

    def current(self) -> T:
        """The content, read again if a file has changed; with `seldom`, by the last look."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return self._content
        with self._lock:
            self._next_look_s = now_s + LOOK_S if self._seldom else 0.0
            found = self._signatures()
            if found == self._seen:
                return self._content
            self._seen = found
            try:
                self._content = self._read()
            except CredentialsBroken as error:
                log.error("changed credentials cannot be used; the last good ones stay", extra={"why": str(error)})
            else:
                log.info("credentials were read again", extra={"file": str(self._paths[0])})
            return self._content

    def _signatures(self) -> list[Signature]:
        return [signature(path) for path in self._paths]


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of credentials. Raises `CredentialsBroken`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsBroken(f"{str(path)!r} cannot be read: {error.strerror}") from error


def signature(path: Path) -> Signature:
    """What changes when a file is replaced, written to, or given other permissions; None if it cannot be found."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_size
