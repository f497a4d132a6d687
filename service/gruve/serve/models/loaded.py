"""The loaded hosts of a server: makes room for each, loads it once for all calls that want it, and closes it.

Everything here runs in the event loop. It knows models by name and digest, and not what else their folders hold.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator

from gruve.errors import Draining, ModelBroken
from gruve.model.versions import Version
from gruve.serve.models.host import ModelHost
from gruve.serve.models.memory import ModelMemory, least_recently_used

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""A model's name and digest."""


@dataclasses.dataclass(frozen=True, slots=True)
class HostEvents:
    """What is called when a host has been loaded, could not be, or has left."""

    on_loaded: Callable[[ModelHost], None]
    on_broken: Callable[[str, Version, ModelBroken], None]
    on_closed: Callable[[ModelHost], None]


class LoadedHosts:
    """The hosts that are open, and those of them that requests can get."""

    def __init__(
        self, load_host: Callable[[str, Version], Awaitable[ModelHost]], events: HostEvents, memory: ModelMemory | None
    ) -> None:
        self.load_host = load_host
        """Makes the host of a version and starts its engine. Raises `ModelBroken`."""
        self.by_key: dict[Key, ModelHost] = {}
        """The hosts that requests can get."""
        self.open: set[ModelHost] = set()
        """These, and hosts that were replaced and still have users."""
        self.loads = self.unloads = 0
        """How many hosts were opened and closed."""
        self.memory = memory
        self.ended = False
        """Whether all hosts are being closed for good."""
        self.closing: dict[asyncio.Task[None], ModelHost] = {}
        self.wanted: collections.Counter[Key] = collections.Counter()
        """How many calls wait for a host to use it."""
        self._events = events
        self._loading: dict[Key, asyncio.Task[None]] = {}
        self._making_room = asyncio.Lock()

    @contextlib.contextmanager
    def want(self, key: Key) -> Iterator[None]:
        """Keeps a host from being idle while a call waits for it."""
        self.wanted[key] += 1
        try:
            yield
        finally:
            self.wanted[key] -= 1
            if not self.wanted[key]:
                del self.wanted[key]

    async def load(self, name: str, version: Version) -> None:
        """Loads a version. Calls that ask for it meanwhile share one load, which continues if they stop waiting.

        With a limit on memory, models are loaded one after the other, and idle ones are unloaded first to make room.
        Raises `ModelBroken`, also if the model is larger than the limit; `LimitExceeded` if there is no room; or
        `Draining`.
        """
        key = name, version.digest
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.ensure_future(self._open(name, version))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait any more
        await asyncio.shield(task)

    def add(self, host: ModelHost) -> None:
        """Opens a host to requests, in place of one with its key."""
        self.loads += 1
        host.idle_since_s = asyncio.get_running_loop().time()
        self.by_key[_key(host)] = host
        self.open.add(host)
        self._events.on_loaded(host)

    def close(self, host: ModelHost) -> None:
        """Takes a host out of service and frees it in the background."""
        self.unloads += 1
        self.open.discard(host)
        name, digest = key = _key(host)
        if self.by_key.get(key) is host:
            del self.by_key[key]
        log.debug("model unloaded", extra={"model": name, "digest": digest[:16]})
        task = asyncio.ensure_future(host.close())
        self.closing[task] = host
        task.add_done_callback(self._end_closing)
        self._events.on_closed(host)

    async def close_all(self) -> None:
        """Closes every host; what their engines still decode is handed over."""
        self.ended = True
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for host in list(self.open):
            self.close(host)
        await asyncio.gather(*self.closing)

    async def _open(self, name: str, version: Version) -> None:
        """Loads a version and opens it to requests.

        When the task ends, requests can get the host, or the reason why there is none is recorded.
        """
        try:
            self.add(await self._make(name, version))
        except ModelBroken as error:
            self._events.on_broken(name, version, error)
            raise
        finally:
            del self._loading[name, version.digest]

    async def _make(self, name: str, version: Version) -> ModelHost:
        if self.memory is None or version.config is None:
            return await self.load_host(name, version)
        async with self._making_room:
            if self.ended:
                raise Draining("the server is shutting down")
            needed = self.memory.needed(version.config)
            await self._make_room(self.memory, name, needed)
            self.memory.used_bytes += needed
            try:
                host = await self.load_host(name, version)
            except BaseException:
                self.memory.used_bytes -= needed
                raise
            host.memory_bytes = needed
            return host

    async def _make_room(self, memory: ModelMemory, name: str, needed: int) -> None:
        """Unloads hosts until there is room for another. Raises `LimitExceeded` if there cannot be, and unloads none.

        From the choice of a host until no call can get it, nothing else runs.
        """
        while (missing := memory.used_bytes + needed - memory.limit_bytes) > 0:
            leaving = sum(host.memory_bytes for host in self.closing.values())
            idle = [host for host in self.open if not host.users and _key(host) not in self.wanted]
            chosen = least_recently_used(idle, missing - leaving)
            if chosen is None:
                raise memory.full(name, needed)
            for host in chosen:
                self.close(host)
            await asyncio.wait(self.closing, return_when=asyncio.FIRST_COMPLETED)

    def _end_closing(self, task: asyncio.Task[None]) -> None:
        host = self.closing.pop(task)
        if self.memory is not None:
            self.memory.used_bytes -= host.memory_bytes


def _key(host: ModelHost) -> Key:
    return host.model.name, host.model.digest
