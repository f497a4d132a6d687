"""Watches a model repository, and reloads the models whose files have changed.

The folders are looked at in intervals, because not every file system reports changes. A folder is reloaded once it has
changed and then looked the same for one interval: a copy that is under way changes it again. A reload checks every
hash, so a folder that came to rest half copied is refused, and tried again after its next change.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from gruve.errors import GruveError, ModelUnknown
from gruve.model.versions import entry_folders, entry_name, version_folders

log = logging.getLogger(__name__)
Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, size in bytes, time of the last change in ns, and inode of every file of a model's folders."""


class Changes:
    """Decides which folders to reload from how they look at each time. Knows no files and no clock."""

    def __init__(self, loaded: dict[str, Fingerprint]) -> None:
        """`loaded` is how the folders looked before the models were loaded, by name."""
        self._applied = loaded
        self._latest = loaded

    def settled(self, now: dict[str, Fingerprint]) -> list[str]:
        """The names to reload: folders that have changed since they were last named, and not since the last look.

        A folder that is gone or empty is none of them.
        """
        names = [
            name
            for name, files in now.items()
            if files and files != self._applied.get(name) and files == self._latest.get(name)
        ]
        self._latest = now
        for name in names:
            self._applied = {**self._applied, name: now[name]}
        return names


class ModelWatch:
    """Looks at a repository every `interval_s` seconds and reloads what has changed and come to rest."""

    def __init__(self, repository: Path, reload: Callable[[str], Awaitable[object]], interval_s: float) -> None:
        self._repository = repository
        self._reload = reload
        self._interval_s = interval_s
        self._changes: Changes | None = None
        self._blind = ""
        """Why the last look failed; "" if it did not."""

    async def begin(self) -> None:
        """Takes the first look, before the models are loaded, so that no change after that is missed."""
        self._changes = Changes(await asyncio.to_thread(fingerprints, self._repository))

    async def run(self) -> None:
        """Looks and reloads until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception:  # the next look may succeed
                log.exception("the model repository could not be watched")

    async def look(self) -> None:
        """Looks once, and reloads what has settled. A refused reload is logged, and a repository that is gone, once."""
        try:
            now = await asyncio.to_thread(fingerprints, self._repository)
        except (ModelUnknown, OSError) as error:
            if str(error) != self._blind:
                log.error("the model repository cannot be watched; its models serve on", extra={"why": str(error)})
            self._blind = str(error)
            return
        self._blind = ""
        if self._changes is None:
            self._changes = Changes(now)
        for name in self._changes.settled(now):
            log.info("the files of a model have changed", extra={"model": name})
            try:
                await self._reload(name)
            except GruveError as error:
                log.warning("a changed model was not loaded", extra={"model": name, "why": str(error)})


def fingerprints(repository: Path) -> dict[str, Fingerprint]:
    """How the folder of each model looks. Raises a `ModelError` if the repository is not there."""
    return {entry_name(folder): _fingerprint(folder) for folder in entry_folders(repository)}


def _fingerprint(folder: Path) -> Fingerprint:
    try:
        folders = [folder, *version_folders(folder)]
    except OSError:  # gone meanwhile, or a dangling link
        return ()
    files: list[tuple[str, int, int, int]] = []
    for place in folders:
        try:
            for found in os.scandir(place):
                if found.is_file():
                    status = found.stat()
                    files.append((found.path, status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            continue  # a file or folder that is just being replaced; the next look sees the result
    return tuple(sorted(files))
