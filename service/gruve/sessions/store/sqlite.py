"""The SQLite store: one file, for one server at a time. It needs no setup.

It uses write-ahead logging. With synchronous NORMAL, a crash of the process loses nothing; a power failure leaves the
file intact but may lose the last writes. FULL keeps those too, at the cost of one disk flush for each write. There are
no leases: a lock on a file beside the database keeps a second server out, and ends with the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from gruve.errors import StoreBroken, StoreUnavailable
from gruve.sessions.store import ALL_TENANTS, AcquiredLease, SessionSummary, StoredSession, Write

BUSY_MS = 1_000
"""How long a call waits for a lock that another process has on the database."""
MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE session (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, created_s REAL NOT NULL,
        used_s REAL NOT NULL, expires_s REAL NOT NULL, position INTEGER NOT NULL, head TEXT NOT NULL
    );
    CREATE INDEX session_created ON session (created_s, id);
    CREATE INDEX session_of_model ON session (model, created_s, id);
    CREATE INDEX session_expires ON session (expires_s);
    CREATE TABLE chunk (session INTEGER, at INTEGER, tokens BLOB NOT NULL, PRIMARY KEY (session, at)) WITHOUT ROWID;
    CREATE TABLE generation (session INTEGER, at INTEGER, record TEXT NOT NULL, PRIMARY KEY (session, at));
    CREATE TABLE state (session INTEGER, at INTEGER, state BLOB NOT NULL, PRIMARY KEY (session, at));
    """,
    """
    ALTER TABLE session ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
    DROP INDEX session_created;
    DROP INDEX session_of_model;
    CREATE INDEX session_of_tenant ON session (tenant, created_s, id);
    CREATE INDEX session_of_model ON session (tenant, model, created_s, id);
    """,
    """
    ALTER TABLE session ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE session SET bytes = length(CAST(head AS BLOB))
        + (SELECT coalesce(sum(length(tokens)), 0) FROM chunk WHERE session = number)
        + (SELECT coalesce(sum(length(CAST(record AS BLOB))), 0) FROM generation WHERE session = number)
        + (SELECT coalesce(sum(length(state)), 0) FROM state WHERE session = number);
    CREATE TABLE tenant_bytes (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO tenant_bytes SELECT tenant, sum(bytes) FROM session GROUP BY tenant;
    CREATE TRIGGER session_grows AFTER UPDATE OF bytes ON session WHEN new.bytes <> old.bytes BEGIN
        INSERT INTO tenant_bytes VALUES (new.tenant, new.bytes - old.bytes)
            ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
    END;
    CREATE TRIGGER session_goes AFTER DELETE ON session BEGIN
        UPDATE tenant_bytes SET bytes = bytes - old.bytes WHERE tenant = old.tenant;
        DELETE FROM tenant_bytes WHERE tenant = old.tenant AND bytes = 0;
    END;
    """,
)
"""Each takes the schema from one version to the next; PRAGMA user_version counts those that were applied."""


class SqliteStore:
    """See `Store`. Raises `StoreBroken` if the file cannot be used at all."""

    shared = False

    def __init__(self, path: Path, *, synchronous: str = "NORMAL", busy_ms: int = BUSY_MS) -> None:
        """`synchronous` is NORMAL or FULL."""
        self.name = f"sqlite:{path}"
        self._lock_file = _lock(path)
        self._synchronous, self._busy_ms, self._path = synchronous, busy_ms, path
        self._writing, self._reading = threading.Lock(), threading.Lock()
        try:
            self._writer = self._connect()
            self._migrate()
            self._reader = self._connect()
            self._inode = _inode(path)
        except sqlite3.Error as error:
            self._lock_file.close()
            refused = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
            cure = _what_access_takes() if refused else ""
            raise StoreBroken(f"the session store {self.name} cannot be used: {error}{cure}") from error
        except StoreBroken:
            self._lock_file.close()
            raise

    def key(self) -> bytes:
        """See `Store`."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('key', ?)", (secrets.token_bytes(32),))
            return bytes(db.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()[0])

    def acquire(self, session_id: str, owner: str, known_version: int | None, now_s: float) -> AcquiredLease | None:
        """See `Store`; no other server writes the file, so any copy is current."""
        if known_version is not None:
            return AcquiredLease(known_version, None)
        stored = self.read(session_id, now_s)
        return None if stored is None else AcquiredLease(1, stored)

    def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """See `Store`."""
        with self._read() as db:
            row = db.execute(
                "SELECT number, head, position, created_s, used_s, tenant FROM session WHERE id = ? AND expires_s > ?",
                (session_id, now_s),
            ).fetchone()
            if row is None:
                return None
            of = (row[0],)
            chunks = db.execute("SELECT tokens FROM chunk WHERE session = ? ORDER BY at", of).fetchall()
            generations = db.execute("SELECT record FROM generation WHERE session = ? ORDER BY at", of).fetchall()
            states = db.execute("SELECT at, state FROM state WHERE session = ?", of).fetchall()
        transcript = b"".join(chunk for (chunk,) in chunks)
        _, head, position, created_s, used_s, tenant = row
        summary = SessionSummary(session_id, head, position, created_s, used_s, "", tenant)
        return StoredSession(summary, transcript, tuple(record for (record,) in generations), tuple(states))

    def write(self, owner: str, writes: Sequence[Write]) -> list[str]:
        """See `Store`; all writes are one transaction."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO session (id, model, tenant, created_s, used_s, expires_s, position, head) "
                "VALUES (?, ?, ?, ?, 0, 0, 0, '')",
                [(w.id, w.model, w.tenant, w.created_s) for w in writes if w.create],
            )
            numbers = {w.id: _update_session(db, w) for w in writes}
            known = [(number, w) for w in writes if (number := numbers[w.id]) is not None]
            _write_contents(db, known)
        return [w.id for w in writes if numbers[w.id] is None]

    def renew(self, owner: str, leases: Sequence[tuple[str, int]]) -> list[str]:
        """See `Store`."""
        return []

    def delete(self, session_id: str, owner: str, version: int) -> bool:
        """See `Store`."""
        with self._transaction() as db:
            return _delete(db, [session_id]) == 1

    def page(
        self, tenant: str, model: str, before: tuple[float, str] | None, size: int, now_s: float
    ) -> list[SessionSummary]:
        """See `Store`."""
        where: list[str] = ["expires_s > ?", "tenant = ?"]
        values: list[float | str] = [now_s, tenant]
        if model:
            where, values = [*where, "model = ?"], [*values, model]
        if before is not None:
            where, values = [*where, "(created_s, id) < (?, ?)"], [*values, *before]
        query = (
            f"SELECT id, head, position, created_s, used_s FROM session WHERE {' AND '.join(where)} "  # noqa: S608 - only the texts above
            "ORDER BY created_s DESC, id DESC LIMIT ?"
        )
        with self._read() as db:
            rows = db.execute(query, (*values, size)).fetchall()
        return [
            SessionSummary(i, head, position, created_s, used_s, "", tenant)
            for i, head, position, created_s, used_s in rows
        ]

    def count(self) -> int:
        """See `Store`."""
        with self._read() as db:
            return int(db.execute("SELECT count(*) FROM session").fetchone()[0])

    def count_live(self, tenant: str, now_s: float, exclude: Collection[str], enough: int) -> int:
        """See `Store`. An index counts a tenant's sessions with the expired ones, which takes a tenth of the time."""
        whose, of = ("", ()) if tenant == ALL_TENANTS else (" AND tenant = ?", (tenant,))
        live = f"SELECT count(*) FROM session WHERE expires_s > ?{whose}"  # noqa: S608 - one of two texts
        excluded = f"{live} AND id IN (SELECT value FROM json_each(?))"  # noqa: S608 - see above
        with self._read() as db:
            if of and (most := _number(db, "SELECT count(*) FROM session WHERE tenant = ?", *of)) <= enough:
                return most
            if (count := _number(db, live, now_s, *of)) <= enough:
                return count
            return count - _number(db, excluded, now_s, *of, json.dumps(list(exclude)))

    def live_bytes(self, tenant: str, now_s: float, exclude: Collection[str]) -> int:
        """See `Store`. Triggers keep a sum for each tenant; only expired and excluded sessions are looked up."""
        whose, of = ("", ()) if tenant == ALL_TENANTS else (" AND tenant = ?", (tenant,))
        kept = f"SELECT coalesce(sum(bytes), 0) FROM tenant_bytes WHERE true{whose}"  # noqa: S608 - one of two texts
        left = (
            f"SELECT coalesce(sum(bytes), 0) FROM session WHERE id IN (SELECT id FROM session WHERE expires_s <= ? "  # noqa: S608 - see above
            f"UNION SELECT value FROM json_each(?)){whose}"
        )
        with self._read() as db:
            return _number(db, kept, *of) - _number(db, left, now_s, json.dumps(list(exclude)), *of)

    def expire(self, now_s: float, max_count: int, exclude: Collection[str]) -> int:
        """See `Store`."""
        with self._read() as db:
            query = "SELECT id FROM session WHERE expires_s <= ? ORDER BY expires_s LIMIT ?"
            due = [i for (i,) in db.execute(query, (now_s, max_count + len(exclude))) if i not in exclude][:max_count]
        if not due:
            return 0
        with self._transaction() as db:
            return _delete(db, due)

    def close(self) -> None:
        """See `Store`."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()
            self._lock_file.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._busy_ms / 1e3, isolation_level=None, check_same_thread=False)
        self._check(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        """Refuses a file that is not a store of this version or an earlier one, before anything in it is changed."""
        version = _version(db)
        if version > len(MIGRATIONS):
            raise StoreBroken(
                f"the session store {self.name} was written by a later version of gruve: it has schema {version}; this "
                f"version reads schemas up to {len(MIGRATIONS)}"
            )
        if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreBroken(f"{self.name} is a database of another program, not a session store")

    def _migrate(self) -> None:
        version = _version(self._writer)
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            self._writer.executescript(f"BEGIN; {statements}; PRAGMA user_version = {number}; COMMIT;")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, _unavailable_on_error():
            if _inode(self._path) != self._inode:  # SQLite would write to the old file, which nobody finds again
                raise sqlite3.OperationalError(f"{self._path} was removed or replaced; restart the server")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A consistent view, whatever is written meanwhile."""
        with self._reading, _unavailable_on_error():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("COMMIT")


def _update_session(db: sqlite3.Connection, write: Write) -> int | None:
    """Updates the session's row and returns its number, or None if there is no such row."""
    row = db.execute(
        "UPDATE session SET used_s = ?, expires_s = ?, position = ?, bytes = ?, head = iif(? = '', head, ?) "
        "WHERE id = ? RETURNING number",
        (
            write.used_s,
            write.used_s + write.ttl_s,
            write.position,
            write.content_bytes,
            write.head,
            write.head,
            write.id,
        ),
    ).fetchone()
    return None if row is None else int(row[0])


def _write_contents(db: sqlite3.Connection, known: list[tuple[int, Write]]) -> None:
    """Writes chunks, generations and states: of each session by its number."""
    eventful = [(n, w) for n, w in known if w.head]  # a write without a head only adds tokens
    db.executemany(
        "DELETE FROM chunk WHERE session = ? AND at >= ?", [(n, w.first_chunk + len(w.chunks)) for n, w in eventful]
    )
    db.executemany(
        "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)",
        [(n, at, chunk) for n, w in known for at, chunk in enumerate(w.chunks, w.first_chunk)],
    )
    db.executemany(
        "DELETE FROM generation WHERE session = ? AND at >= ?",
        [(n, w.first_generation + len(w.generations)) for n, w in eventful],
    )
    db.executemany(
        "INSERT OR REPLACE INTO generation VALUES (?, ?, ?)",
        [(n, at, record) for n, w in eventful for at, record in enumerate(w.generations, w.first_generation)],
    )
    db.executemany(
        "DELETE FROM state WHERE session = ? AND at = ?", [(n, at) for n, w in known for at in w.dropped_states]
    )
    db.executemany(
        "INSERT OR REPLACE INTO state VALUES (?, ?, ?)", [(n, at, state) for n, w in known for at, state in w.states]
    )


def _inode(path: Path) -> int | None:
    """What tells a file from another one in its place; None without a file."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _number(db: sqlite3.Connection, query: str, *values: float | str) -> int:
    """The one number that a query answers."""
    return int(db.execute(query, values).fetchone()[0])


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _delete(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    deleted = 0
    for session_id in ids:
        for table in ("chunk", "generation", "state"):
            contents = f"DELETE FROM {table} WHERE session = (SELECT number FROM session WHERE id = ?)"  # noqa: S608 - one of three names
            db.execute(contents, (session_id,))
        deleted += db.execute("DELETE FROM session WHERE id = ?", (session_id,)).rowcount
    return deleted


def _lock(path: Path) -> IO[str]:
    """Locks the store for this process. The system releases the lock when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # SQLite says no more than that it cannot open it
            raise StoreBroken(f"the session store sqlite:{path} cannot be used: it is a folder, not a file")
        path.touch(mode=0o600)  # what users wrote is private
        file = open(path.with_name(path.name + ".lock"), "a")  # noqa: SIM115 - held as long as the store
    except OSError as error:
        cure = _what_access_takes() if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
        why = f"{error.strerror}: {error.filename!r}{cure}"
        raise StoreBroken(f"the session store sqlite:{path} cannot be used: {why}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreBroken(
            f"the session store sqlite:{path} is in use by another server; give one of them another --store"
        ) from error
    return file


def _what_access_takes() -> str:
    return f"; user {os.geteuid()} must be able to write to the file and to its folder, or give another --store"


@contextlib.contextmanager
def _unavailable_on_error() -> Iterator[None]:
    """Raises `StoreUnavailable` for any error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable("the session store cannot be read or written") from error
