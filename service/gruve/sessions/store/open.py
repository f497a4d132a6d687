"""Opens the store that `--store` names."""

from __future__ import annotations

from pathlib import Path

from gruve.errors import InvalidField
from gruve.sessions.store import Store
from gruve.sessions.store.redis import RedisStore
from gruve.sessions.store.sqlite import SqliteStore

FORMS = "memory, sqlite:PATH or redis://HOST"


def open_store(where: str, *, synchronous: str = "NORMAL") -> Store | None:
    """Opens the store; None for `memory`, where sessions end with the server.

    Raises `InvalidField` if `where` names none or is malformed, `StoreBroken` or `StoreUnavailable` if it is unusable.
    """
    kind, _, rest = where.partition(":")
    if where == "memory":
        return None
    if kind == "sqlite" and rest:
        return SqliteStore(Path(rest), synchronous=synchronous)
    if kind in ("redis", "rediss", "unix") and rest.startswith("//"):
        return RedisStore(where)
    raise InvalidField("store", f"{kind[:20]!r} is not a session store; use {FORMS}")
