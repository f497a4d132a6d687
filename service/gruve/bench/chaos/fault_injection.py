"""Faults of a session store, injected under a running server and undone afterwards. None needs root.

Faults in SQLite's file are injected through a second connection, which invalidates the server's page cache. They run on
a worker thread, because they wait for the server's locks and the clients' event loop must not wait with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from gruve.bench.chaos.replicas import Redis, Replica

Fault = Callable[[Path, Redis | None, Replica], contextlib.AbstractAsyncContextManager[None]]
Patch = tuple[int, bytes]
"""A file offset and the bytes to write there."""
TABLES = ("session", "chunk", "generation", "state")
WRITE_VERSION = 18
"""Offset of the write version in SQLite's header; an unknown version makes the file read-only."""


@contextlib.asynccontextmanager
async def disk_full(path: Path, __: Redis | None, server: Replica) -> AsyncIterator[None]:
    """Limits the size of the server's files to their present one, which acts as a full disk."""
    size = min(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")))
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield


@contextlib.asynccontextmanager
async def locked(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Holds SQLite's write lock."""
    with _connected(path) as db:
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        yield


@contextlib.asynccontextmanager
async def read_only(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Marks the file as read-only in its header."""
    async with _overwritten(path, lambda _: [(WRITE_VERSION, b"\xff")]):
        yield


@contextlib.asynccontextmanager
async def corrupt_pages(path: Path, _: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Overwrites the root pages of all tables, and restores the ones that were not rewritten since."""

    def roots(db: sqlite3.Connection) -> list[Patch]:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        pages = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall()
        return [(size * (page - 1), b"\xa5" * size) for name, page in pages if name in TABLES]

    async with _overwritten(path, roots):
        yield


@contextlib.asynccontextmanager
async def redis_down(_: Path, redis: Redis | None, __: Replica) -> AsyncIterator[None]:
    """Kills Redis, and starts it again afterwards."""
    assert redis is not None  # noqa: S101 - the scenario's store is Redis
    await redis.kill()
    try:
        yield
    finally:
        await redis.start()


FAULTS: dict[str, Fault] = {
    "store-full": disk_full,
    "store-locked": locked,
    "store-readonly": read_only,
    "store-corrupt": corrupt_pages,
    "store-unreachable": redis_down,
}


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, timeout=20.0, isolation_level=None, check_same_thread=False)
    with contextlib.closing(db):
        yield db


@contextlib.asynccontextmanager
async def _overwritten(path: Path, patches: Callable[[sqlite3.Connection], list[Patch]]) -> AsyncIterator[None]:
    """Overwrites parts of the file without SQLite, and restores those that have not been rewritten since."""
    places, before = await asyncio.to_thread(_overwrite, path, patches)
    try:
        yield
    finally:
        await asyncio.to_thread(_restore, path, places, before)


def _overwrite(path: Path, patches: Callable[[sqlite3.Connection], list[Patch]]) -> tuple[list[Patch], list[bytes]]:
    """Writes patches into the file; returns them and the bytes they replaced."""
    with open(path, "r+b", buffering=0) as file, _connected(path) as db:
        _begin_with_empty_log(db, path)
        places = patches(db)
        before = [os.pread(file.fileno(), len(patch), at) for at, patch in places]
        for at, patch in places:
            os.pwrite(file.fileno(), patch, at)
        db.execute("INSERT INTO meta VALUES ('fault', x'')")  # makes the server read its pages again
        db.execute("DELETE FROM meta WHERE name = 'fault'")  # an UPDATE to the same value would write nothing
        db.execute("COMMIT")  # writes no first page, which would undo a fault in the header
    return places, before


def _restore(path: Path, places: list[Patch], before: list[bytes]) -> None:
    with open(path, "r+b", buffering=0) as file:
        for (at, patch), old in zip(places, before, strict=True):
            if os.pread(file.fileno(), len(patch), at) == patch:
                os.pwrite(file.fileno(), old, at)


def _begin_with_empty_log(db: sqlite3.Connection, path: Path) -> None:
    """Begins a transaction at a moment when the write-ahead log is empty."""
    log = path.with_name(path.name + "-wal")
    while True:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("BEGIN IMMEDIATE")
        if log.stat().st_size == 0:
            return
        db.execute("ROLLBACK")
