"""A file that is read again when it has changed. A change that cannot be used leaves the last good content in use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gruve.errors import CredentialsBroken

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 0.25
"""How often a file is looked at, at most. A look for each call would double what checking an API key costs: 11 us
instead of 5.5."""
Signature = tuple[int, int, int]


def signature(path: Path) -> Signature:
    """What changes when a file is replaced or written to. Raises `CredentialsBroken` if there is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise CredentialsBroken(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return status.st_ino, status.st_mtime_ns, status.st_size


class WatchedFile(Generic[T]):
    """What `parse` makes of a file's bytes. Used from one thread."""

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        """Reads the file; raises `CredentialsBroken`, as `parse` does for content that cannot be used."""
        self._path = path
        self._parse = parse
        self._seen: Signature | None = signature(path)
        self._look_s = 0.0
        self._content = self._read()

    def current(self) -> T:
        """The content, read again if the file has changed by the last look."""
        now_s = time.monotonic()
        if now_s < self._look_s:
            return self._content
        self._look_s = now_s + LOOK_S
        try:
            found: Signature | None = signature(self._path)
            if found != self._seen:
                self._seen = found
                self._content = self._read()
                log.info("a file of credentials was read again", extra={"file": str(self._path)})
        except CredentialsBroken as error:
            if self._seen is not None:
                log.error("a changed file cannot be used; its last good content stays", extra={"why": str(error)})
            self._seen = None
        return self._content

    def _read(self) -> T:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise CredentialsBroken(f"{str(self._path)!r} cannot be read: {error.strerror}") from error
        return self._parse(data)
