"""A file that is read again when it has changed. A change that cannot be used leaves the last good content in use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gruve.errors import CredentialsBroken
from gruve.ports import read_bytes, signature

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 0.25
"""How often a file is looked at, at most. A look for each call would double what checking an API key costs: 11 us
instead of 5.5."""


class WatchedFile(Generic[T]):
    """What `parse` makes of a file's bytes. Used from one thread."""

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        """Reads the file; raises `CredentialsBroken`, as `parse` does for content that cannot be used."""
        self._path = path
        self._parse = parse
        self._seen = signature(path)
        self._look_s = 0.0
        self._content = self._read()

    def current(self) -> T:
        """The content, read again if the file has changed by the last look."""
        now_s = time.monotonic()
        if now_s < self._look_s:
            return self._content
        self._look_s = now_s + LOOK_S
        found = signature(self._path)
        if found == self._seen:
            return self._content
        self._seen = found
        try:
            self._content = self._read()
        except CredentialsBroken as error:
            log.error("a changed file cannot be used; its last good content stays", extra={"why": str(error)})
        else:
            log.info("a file of credentials was read again", extra={"file": str(self._path)})
        return self._content

    def _read(self) -> T:
        return self._parse(read_bytes(self._path))
