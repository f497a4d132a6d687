"""Ways in which a session store fails under a running server, each undone again; none needs the rights of root.

What is done to SQLite's file is done by a second connection, so that the server's own cache of it is void, and on a
thread of its own: it waits for the server's locks, and the streams' clients must not wait with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from gruve.bench.replicas import Redis, Replica

Break = Callable[[Path, Redis | None, Replica], contextlib.AbstractAsyncContextManager[None]]
Patch = tuple[int, bytes]
"""Where in the file, and what is written there."""
TABLES = ("session", "chunk", "generation", "state")
WRITE_VERSION = 18
"""Where the file says how it is to be written; a version that is not known yet makes it read-only."""


@contextlib.asynccontextmanager
async def full(path: Path, __: Redis | None, server: Replica) -> AsyncIterator[None]:
    """No file of the server may grow any more, as on a full disk."""
    size = min(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")))
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield


@contextlib.asynccontextmanager
async def locked(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Somebody else holds the lock that writers need."""
    with _connected(path) as db:
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        yield


@contextlib.asynccontextmanager
async def read_only(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """SQLite finds that the file must not be written."""
    async with _overwritten(path, lambda _: [(WRITE_VERSION, b"\xff")]):
        yield


@contextlib.asynccontextmanager
async def corrupt(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """The roots of all tables are garbage; then whatever still is garbage is put back."""

    def roots(db: sqlite3.Connection) -> list[Patch]:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        pages = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall()
        return [(size * (page - 1), b"\xa5" * size) for name, page in pages if name in TABLES]

    async with _overwritten(path, roots):
        yield


@contextlib.asynccontextmanager
async def unreachable(_: Path, redis: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Redis is gone."""
    assert redis is not None  # noqa: S101 - the scenario's store is Redis
    await redis.kill()
    try:
        yield
    finally:
        await redis.start()


BREAKS: dict[str, Break] = {
    "store-full": full,
    "store-locked": locked,
    "store-readonly": read_only,
    "store-corrupt": corrupt,
    "store-unreachable": unreachable,
}


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, timeout=20.0, isolation_level=None, check_same_thread=False)
    with contextlib.closing(db):
        yield db


@contextlib.asynccontextmanager
async def _overwritten(path: Path, patches: Callable[[sqlite3.Connection], list[Patch]]) -> AsyncIterator[None]:
    """Overwrites places of the file behind SQLite's back; what nobody has written anew by then is put back."""
    places, before = await asyncio.to_thread(_overwrite, path, patches)
    try:
        yield
    finally:
        await asyncio.to_thread(_put_back, path, places, before)


def _overwrite(path: Path, patches: Callable[[sqlite3.Connection], list[Patch]]) -> tuple[list[Patch], list[bytes]]:
    """Writes patches into the file, and returns them with what was there before."""
    with open(path, "r+b", buffering=0) as file, _connected(path) as db:
        _quiet(db, path)
        places = patches(db)
        before = [os.pread(file.fileno(), len(patch), at) for at, patch in places]
        for at, patch in places:
            os.pwrite(file.fileno(), patch, at)
        db.execute("UPDATE meta SET value = value")  # anything written, but not to the first page
        db.execute("COMMIT")
    return places, before


def _put_back(path: Path, places: list[Patch], before: list[bytes]) -> None:
    with open(path, "r+b", buffering=0) as file:
        for (at, patch), old in zip(places, before, strict=True):
            if os.pread(file.fileno(), len(patch), at) == patch:
                os.pwrite(file.fileno(), old, at)


def _quiet(db: sqlite3.Connection, path: Path) -> None:
    """Begins a transaction while the file itself has everything, the log nothing."""
    log = path.with_name(path.name + "-wal")
    while True:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("BEGIN IMMEDIATE")
        if log.stat().st_size == 0:
            return
        db.execute("ROLLBACK")
