"""The models of a server: which version a request means, who uses it, and how another takes its place.

Everything here runs in the event loop. Files are read and weights packed on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from gruve.errors import Draining, LimitExceeded, ModelBroken, ModelUnknown, ReloadRefused
from gruve.model.repository import load_tokenizer
from gruve.model.tokenizer import Tokenizer
from gruve.model.versions import (
    Entry,
    Version,
    check_version,
    choose_version,
    find_entries,
    find_entry,
    listed,
    load_version,
    shorten_reason,
    split_reference,
)
from gruve.serve.models.host import ModelHost
from gruve.serve.models.loaded import HostEvents, LoadedHosts
from gruve.serve.models.memory import ModelMemory
from gruve.serve.models.served import ServedModel

log = logging.getLogger(__name__)
Check = Callable[[str, Version], object]
"""Checks the files of a version of a model; raises `ModelBroken`."""
OLD_VERSION_IDLE_S = 60.0
"""How long a version that is not the newest stays loaded without a user."""


class ModelHosts:
    """The models of one repository by name, and the hosts of the versions that are loaded."""

    def __init__(
        self,
        repository: Path,
        load_host: Callable[[str, Version], Awaitable[ModelHost]],
        on_change: Callable[[ServedModel], None] = lambda _: None,
        memory: ModelMemory | None = None,
    ) -> None:
        """`load_host` makes the host of a version and starts its engine; it raises `ModelBroken`.

        `on_change` is called when a model has begun or ceased to be usable. With `memory`, models are loaded by the
        first request for them, and unloaded when others need their room.
        """
        self.served: dict[str, ServedModel] = {}
        self._repository = repository
        self._on_change = on_change
        events = HostEvents(on_loaded=self._show, on_broken=self._remember_broken, on_closed=self._report_closed)
        self.loaded = LoadedHosts(load_host, events, memory)
        self._memory = memory
        self._reloading = asyncio.Lock()
        self._started = False

    async def start(self) -> None:
        """Reads the repository and loads the newest version of every model. Raises `ModelUnknown` without a folder.

        With a limit on memory, it checks them without their weights.
        """
        for name, entry in (await asyncio.to_thread(find_entries, self._repository)).items():
            self.served[name] = ServedModel(entry)
            with contextlib.suppress(ModelBroken):
                await self._ready_newest(self.served[name], check_version)
        self._started = True

    async def close(self) -> None:
        """Closes every host; what their engines still decode is handed over."""
        await self.loaded.close_all()

    @property
    def hosts(self) -> list[ModelHost]:
        """Every host that is open."""
        return list(self.loaded.open)

    @property
    def failed(self) -> list[ModelHost]:
        """The hosts of newest versions whose engine has failed."""
        newest = [(served.name, served.newest) for served in self.served.values()]
        hosts = [self.loaded.by_key.get((name, version.digest)) for name, version in newest if version is not None]
        return [host for host in hosts if host is not None and host.failed]

    @property
    def serving(self) -> list[ServedModel]:
        """The models that can be used, in the order of their names."""
        return [self.served[name] for name in sorted(self.served) if not self.served[name].state_reason]

    @property
    def broken(self) -> list[ServedModel]:
        """The models that cannot be used, in the order of their names."""
        return [self.served[name] for name in sorted(self.served) if self.served[name].state_reason]

    def host(self, served: ServedModel, version: Version) -> ModelHost | None:
        """The host of a version; None if it is not loaded."""
        return self.loaded.by_key.get((served.name, version.digest))

    def model(self, name: str) -> ServedModel:
        """The model of a name. Raises `ModelUnknown`."""
        served = self.served.get(name)
        if served is None:
            known = listed(served.name for served in self.serving)
            raise ModelUnknown(f"no model is called {name[:80]!r}; the server has: {known}")
        return served

    def look_up(self, reference: str) -> tuple[ServedModel, Version | None]:
        """The model and the version that a reference means, broken or not; None if all versions are broken.

        Raises `ModelUnknown`.
        """
        name, selector = split_reference(reference)
        served = self.model(name)
        return served, choose_version(name, selector, self._versions(served)) if selector else served.newest

    def find(self, reference: str, digest: str = "") -> tuple[ServedModel, Version]:
        """The model and the version that a reference means.

        With `digest`, as sessions have it, it is the version of that digest while there is one, else the newest.
        Raises `ModelUnknown`, or `ModelBroken` with the reason.
        """
        served, version = self.look_up(reference)
        if digest:
            host = self.loaded.by_key.get((served.name, digest))
            own = host.version if host else served.with_digest(digest)
            if own is not None:
                return served, own
        why = served.state_reason if version is None else served.why(version)
        if version is None or why:
            raise ModelBroken(f"model {reference[:80]!r} is not serving: {why}", state_reason=why)
        return served, version

    @contextlib.asynccontextmanager
    async def use(self, reference: str, digest: str = "") -> AsyncIterator[ModelHost]:
        """The host of what `find` finds, held for the time of the context."""
        host = await self.acquire(reference, digest)
        try:
            yield host
        finally:
            self.release(host)

    async def acquire(self, reference: str, digest: str = "") -> ModelHost:
        """The host of what `find` finds, loaded if it is not. It stays until `release`.

        Raises what `find` raises, `LimitExceeded` if there is no memory for it, or `Draining`.
        """
        while True:
            served, version = self.find(reference, digest)
            host = self.host(served, version)
            if host is not None:
                host.users += 1
                return host
            if self.loaded.ended:
                raise Draining("the server is shutting down")
            # After a load nothing else runs before the host is used above. If it fails, `find` chooses another version.
            with self.loaded.want((served.name, version.digest)), contextlib.suppress(ModelBroken):
                await self.loaded.load(served.name, version)

    async def tokenizer(self, reference: str) -> Tokenizer:
        """The tokenizer of what `find` finds. It is read if the model is not loaded, which loads no weights.

        Raises what `find` raises, and `ModelBroken` if it cannot be read.
        """
        served, version = self.find(reference)
        host = self.host(served, version)
        if host is not None:
            return host.model.tokenizer
        assert version.config is not None  # noqa: S101 - a version without a config is broken
        return await asyncio.to_thread(load_tokenizer, version.folder, version.config)

    def release(self, host: ModelHost) -> None:
        """Ends one use of a host, and closes it if nothing needs it any more."""
        host.users -= 1
        host.idle_since_s = asyncio.get_running_loop().time()
        self._settle(host)

    async def reload(self, name: str) -> ServedModel:
        """Reads a model's folder again, and puts its newest version into service if that is another one.

        Calls are served one after the other. Raises `ModelUnknown` if neither the server nor the repository has the
        name, and `ReloadRefused` if the newest version cannot be loaded; then everything stays as it was.
        """
        async with self._reloading:
            served = self.served.get(name)
            entry = await asyncio.to_thread(find_entry, self._repository, name)
            if entry is None:
                self.model(name)
                raise _refused(name, "its folder is gone from the repository")
            if served is None or served.newest is None:
                await self._load_new(entry)
            else:
                await self._replace(served, entry)
            return self.served[name]

    async def _load_new(self, entry: Entry) -> None:
        """Loads a model that was not there, or broken; with a limit on memory, it checks all of it instead."""
        served = self.served[entry.name] = ServedModel(entry)
        try:
            await self._ready_newest(served, load_version)
        except ModelBroken as error:
            why = str(error)
            raise ReloadRefused(f"model {entry.name!r} cannot be loaded: {why}", state_reason=why) from error
        finally:
            self._on_change(served)

    async def _replace(self, served: ServedModel, entry: Entry) -> None:
        """Loads the newest version beside the one that serves, and switches to it.

        With a limit on memory, it is loaded if the model is loaded and there is room, else by the next request.
        """
        version, name = entry.versions[-1], entry.name
        if version.why:
            raise _refused(name, version.why)
        old = self.loaded.by_key.get((name, version.digest))
        try:
            if self._memory is None and (old is None or old.failed):
                self.loaded.add(await self.loaded.load_host(name, version))
            else:
                await self._check(name, version, load_version)  # the other files may have been damaged
            if self._memory is not None:
                await self._load_beside(name, version)
        except ModelBroken as error:
            raise _refused(name, str(error)) from error
        served.entry, served.failures = entry, {}
        self._on_change(served)
        for host in [host for host in self.hosts if host.model.name == name]:
            self._show(host)
            self._settle(host)

    async def _load_beside(self, name: str, version: Version) -> None:
        """Loads a version if others of the model are loaded, in place of one whose engine has failed.

        Where there is no room for it beside them, the next request loads it.
        """
        hosts = self.loaded.by_key
        was_loaded = any(loaded == name for loaded, _ in hosts)
        old = hosts.get((name, version.digest))
        if old is not None and old.failed:
            del hosts[name, version.digest]
            self._settle(old)
        if was_loaded and (name, version.digest) not in hosts:
            with contextlib.suppress(LimitExceeded):
                await self.loaded.load(name, version)

    async def _ready_newest(self, served: ServedModel, check: Check) -> None:
        """Loads the highest version that can be loaded, or with a limit on memory only checks it.

        Raises `ModelBroken` if none can.
        """
        while (version := served.newest) is not None:
            try:
                if self._memory is None:
                    await self.loaded.load(served.name, version)
                else:
                    await self._check(served.name, version, check)
                return
            except ModelBroken as error:
                self._remember_broken(served.name, version, error)
        raise ModelBroken(served.state_reason)

    async def _check(self, name: str, version: Version, check: Check) -> None:
        """Checks the files and the size of a version. Raises `ModelBroken`."""
        if self._memory is not None and version.config is not None:
            self._memory.needed(version.config)
        await asyncio.to_thread(check, name, version)

    def _remember_broken(self, name: str, version: Version, error: ModelBroken) -> None:
        """Remembers that a version cannot be loaded, and why."""
        served = self.served[name]
        if version.digest in served.failures:
            return
        served.failures[version.digest] = shorten_reason(error)
        # A model without any version that serves is reported by the server at the end of its start.
        if self._started or served.newest is not None:
            log.warning("model is broken", extra={"model": name, "version": version.number, "why": str(error)})
        self._on_change(served)

    def _report_closed(self, host: ModelHost) -> None:
        """Shows that a host has left, and with it, if it had failed, what made its model unready."""
        self._show(host)
        if host.failed:
            self._on_change(self.served[host.model.name])

    def _show(self, host: ModelHost) -> None:
        """Shows in the metrics what decodes the newest version of a host's model."""
        newest = self.served[host.model.name].newest
        current = None if newest is None else self.loaded.by_key.get((host.model.name, newest.digest))
        if current is None:
            host.metrics.show_backend(None, "")
        else:
            host.metrics.show_backend(current.backend, current.model.digest)

    def _versions(self, served: ServedModel) -> list[Version]:
        """The versions that can be named: those on disk, after those that are loaded and no longer there."""
        on_disk = {version.digest for version in served.entry.versions}
        loaded = [host.version for (name, digest), host in self.loaded.by_key.items() if name == served.name]
        return [version for version in loaded if version.digest not in on_disk] + list(served.entry.versions)

    def _settle(self, host: ModelHost) -> None:
        """Closes an unused host that no request can ask for; schedules the end of an unused old version."""
        if host.users or host not in self.loaded.open:
            return
        name, digest = host.model.name, host.model.digest
        served = self.served[name]
        if self.loaded.by_key.get((name, digest)) is not host or not served.with_digest(digest):
            self.loaded.close(host)
        elif served.newest is None or served.newest.digest != digest:
            loop = asyncio.get_running_loop()
            host.idle_since_s = loop.time()
            loop.call_later(OLD_VERSION_IDLE_S, self._unload, host, host.idle_since_s)

    def _unload(self, host: ModelHost, idle_since_s: float) -> None:
        """Closes an old version that was not used since."""
        served = self.served[host.model.name]
        is_newest = served.newest is not None and served.newest.digest == host.model.digest
        if host in self.loaded.open and not host.users and not is_newest and host.idle_since_s == idle_since_s:
            self.loaded.close(host)


def _refused(name: str, why: str) -> ReloadRefused:
    return ReloadRefused(f"model {name!r} was not reloaded and serves as before: {why}", state_reason=why)
