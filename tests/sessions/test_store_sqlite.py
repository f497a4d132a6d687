"""The special properties of the SQLite store: its file and its lock, broken files, older versions, a full disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gruve.errors import StoreBroken, StoreUnavailable
from gruve.sessions.encoding import pack_head, prepare_write
from gruve.sessions.store import ALL_TENANTS
from gruve.sessions.store.sqlite import MIGRATIONS, SqliteStore
from session_records import NOW, load, save, session_of


def test_a_second_server_is_kept_off_the_file(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    with pytest.raises(StoreBroken, match="in use by another server"):
        SqliteStore(tmp_path / "s.db")
    store.close()
    SqliteStore(tmp_path / "s.db").close()


def test_a_killed_servers_file_is_free_at_once_and_whole(tmp_path):
    code = f"""
import os
from pathlib import Path
from gruve.sessions.store.sqlite import MIGRATIONS, SqliteStore
from session_records import save, session_of
store = SqliteStore(Path({str(tmp_path / "s.db")!r}))
for i in range(20):
    save(store, session_of(f"s{{i}}", tokens=900))
os.kill(os.getpid(), 9)
"""
    path = [*sys.path, str(pytest.__file__)]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}"], check=False)
    store = SqliteStore(tmp_path / "s.db")
    assert [load(store, f"s{i}").position for i in range(20)] == [901] * 20
    store.close()


def test_a_copy_that_sqlite_makes_of_an_open_store_has_its_sessions_and_its_key(tmp_path):
    store = SqliteStore(tmp_path / "s.db")
    key = store.key()
    save(store, session_of("s", tokens=900))
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as target,
    ):
        source.backup(target)
    copy = SqliteStore(tmp_path / "copy.db")
    assert (load(copy, "s").position, copy.key()) == (901, key)
    for opened in (store, copy):
        opened.close()


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"not a database" * 99), lambda p: other_database(p)])
def test_a_file_that_is_no_store_is_left_alone(tmp_path, spoil):
    path = tmp_path / "s.db"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StoreBroken, match="sqlite:"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_named_and_left_empty(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    with pytest.raises(StoreBroken, match=f"sqlite:{path} cannot be used: it is a folder, not a file"):
        SqliteStore(path)
    assert [found.name for found in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_cannot_be_written_is_named_with_the_user_and_the_cure(is_there):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.db")
        for file in (path, Path(f"{path}.lock")) if is_there else ():  # then it is SQLite that cannot make its files
            file.touch()
            file.chmod(0o666)
        path.parent.chmod(0o555)
        with without_privileges() as user, pytest.raises(StoreBroken) as refused:
            SqliteStore(path)
    why = "attempt to write a readonly database" if is_there else f"Permission denied: '{path}'"
    assert str(refused.value) == (
        f"the session store sqlite:{path} cannot be used: {why}; "
        f"user {user} must be able to write to the file and to its folder, or give another --store"
    )


@contextlib.contextmanager
def without_privileges():
    """Acts as a user that is not root, whom permissions do not hold."""
    user = os.geteuid()
    os.seteuid(user or 65_534)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(user)


def other_database(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE plants (name TEXT)")


def test_a_file_of_a_later_version_is_refused_by_name(tmp_path):
    SqliteStore(tmp_path / "s.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreBroken, match="schema 9"):
        SqliteStore(tmp_path / "s.db")


def test_a_file_from_before_sizes_were_kept_gets_those_of_its_contents(tmp_path):
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"BEGIN; {MIGRATIONS[0]} {MIGRATIONS[1]} PRAGMA user_version = 2; COMMIT;")
        query = "INSERT INTO session VALUES (?, ?, 'm', ?, ?, ?, 3, ?, ?)"
        for number, tenant in enumerate(["ann", "ann", "bob"]):
            db.execute(query, (number, f"s{number}", NOW, NOW, NOW + 100.0, "é" * 10, tenant))
            db.execute("INSERT INTO chunk VALUES (?, 0, zeroblob(6))", (number,))
            db.execute("INSERT INTO generation VALUES (?, 0, 'two')", (number,))
            db.execute("INSERT INTO state VALUES (?, 2, zeroblob(40))", (number,))
        db.commit()
    store = SqliteStore(path)
    assert [store.live_bytes(of, NOW, []) for of in ("ann", "bob", "eve", ALL_TENANTS)] == [138, 69, 0, 207]
    assert store.live_bytes("ann", NOW, ["s0", "s2"]) == 69
    assert store.live_bytes("ann", NOW + 101.0, []) == 0
    assert store.delete("s0", "me", 1)
    assert store.live_bytes(ALL_TENANTS, NOW, []) == 138
    store.close()


def test_a_file_from_before_there_were_tenants_belongs_to_the_default_tenant(tmp_path):
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"BEGIN; {MIGRATIONS[0]}; PRAGMA user_version = 1; COMMIT;")
        head = pack_head(session_of("old", NOW, "b"))
        row = ("old", "b", NOW, NOW, NOW + 100.0, 1, head)
        query = "INSERT INTO session (id, model, created_s, used_s, expires_s, position, head) VALUES (?,?,?,?,?,?,?)"
        db.execute(query, row)
        db.execute("INSERT INTO chunk SELECT number, 0, x'0000' FROM session")
        db.commit()
    store = SqliteStore(path)
    assert [(i.id, i.tenant) for i in store.page("default", "b", None, 9, NOW)] == [("old", "default")]
    assert load(store, "old").tenant == "default"
    store.close()


def test_a_full_disk_refuses_a_write_whole_and_takes_it_later(tmp_path):
    store, session = SqliteStore(tmp_path / "s.db"), session_of(tokens=5)
    save(store, session)
    store._writer.execute("PRAGMA max_page_count = 1")
    session.transcript.extend([5] * 50_000)
    handed = prepare_write(session)
    with pytest.raises(StoreUnavailable):
        store.write("me", [handed.write])
    handed.fail()
    assert load(store).position == 6
    store._writer.execute("PRAGMA max_page_count = 100000")
    save(store, session)
    assert load(store).transcript == session.transcript
    store.close()


def test_a_locked_database_is_waited_for_and_no_longer(tmp_path):
    store = SqliteStore(tmp_path / "s.db", busy_ms=30)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            save(store, session_of())
        db.execute("ROLLBACK")
    save(store, session_of())
    assert load(store) is not None
    store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_or_replaced_takes_no_writes(tmp_path, replaced):
    store = SqliteStore(tmp_path / "s.db")
    save(store, session_of())
    (tmp_path / "s.db").rename(tmp_path / "old.db")
    if replaced:
        (tmp_path / "s.db").touch()
    with pytest.raises(StoreUnavailable) as told:
        save(store, session_of("b"))
    assert "s.db was removed or replaced; restart the server" in str(told.value.__cause__)
    (tmp_path / "old.db").replace(tmp_path / "s.db")
    save(store, session_of("b"))
    store.close()
