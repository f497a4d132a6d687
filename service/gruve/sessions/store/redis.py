"""The Redis store: several servers share it, so that each of them can serve every session.

A session is one hash, so it is on one node of a cluster and expires as a whole. Its fields are `head`, `created`,
`used`, `ttl`, `position`, `bytes`, `tenant`; the lease's `owner`, `version` and `until`; and, by number, `t:` chunks,
`g:` generations and `s:` states. Operations that must be atomic are Lua scripts (`redis_scripts.py`). Leases are
measured by Redis's own clock. Session ids are in sorted sets by time of creation, for each tenant one of all models and
one of each; `expire` removes expired ids from them.

Whether a write survives a crash of Redis depends on its `appendfsync`: `always` loses nothing, `everysec` may lose a
second.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gruve.errors import InvalidField, SessionElsewhere, StoreUnavailable
from gruve.sessions.record import DEFAULT_TENANT
from gruve.sessions.store import ALL_TENANTS, LEASE_S, AcquiredLease, SessionSummary, StoredSession, Write
from gruve.sessions.store import redis_scripts as scripts

ANSWER_S = 2.0
CONNECT_S = 1.0
LEASE_MS = int(LEASE_S * 1e3)
LEAST_TTL_MS = 2 * LEASE_MS
"""The minimum time to live of a session in use, so that it does not expire."""
PREFIX = "gruve:"
INDEX = PREFIX + "sessions"
MODELS = PREFIX + "models"
TENANTS = PREFIX + "tenants"
PAGE = 256
TENANTS_SWEPT = 64
"""The most tenants whose sessions one call of `expire` looks at."""
_COMMAND = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
"""What redis-py puts before an error. It has the command with its session id, which may not be logged."""
LISTED = (b"head", b"position", b"created", b"used", b"owner", b"until", b"tenant")


class RedisStore:
    """See `Store`."""

    shared = True

    def __init__(self, url: str) -> None:
        """`url` is redis://, rediss:// or unix://, with user and password if needed. Raises `InvalidField`."""
        self.name = _without_password(url)
        try:
            _check_url(url)
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=ANSWER_S,
                socket_connect_timeout=CONNECT_S,
                retry=Retry(NoBackoff(), 1),  # for a connection that was closed in the meantime
                health_check_interval=30,
            )
            pool = self._redis.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # finds options of the URL that are none
        except (TypeError, ValueError) as error:
            raise InvalidField("store", f"{self.name!r} cannot be used: {error}") from None
        register: Callable[[str], Any] = self._redis.register_script
        self._acquire, self._write, self._renew, self._delete = map(
            register, (scripts.ACQUIRE, scripts.WRITE, scripts.RENEW, scripts.DELETE)
        )
        self._measure = register(scripts.MEASURE)
        self._sweeping, self._swept = DEFAULT_TENANT, 0
        """Whose sessions `expire` looks at next, and how many of them it has looked at."""

    def key(self) -> bytes:
        """See `Store`."""
        with _unavailable_on_error():
            self._redis.set(PREFIX + "key", secrets.token_bytes(32), nx=True)
            return bytes(self._redis.get(PREFIX + "key"))

    def acquire(self, session_id: str, owner: str, known_version: int | None, now_s: float) -> AcquiredLease | None:
        """See `Store`."""
        with _unavailable_on_error():
            args = [owner, "" if known_version is None else known_version, LEASE_MS, LEAST_TTL_MS]
            answer = self._acquire(keys=[_name(session_id)], args=args)
        if answer is None:
            return None
        if isinstance(answer, bytes):
            raise SessionElsewhere(f"another server is using session {session_id!r}")
        version, *contents = answer
        if not contents:
            return AcquiredLease(int(version), None)
        fields = dict(zip(contents[0][::2], contents[0][1::2], strict=True))
        return AcquiredLease(int(version), _stored(session_id, fields, 0))

    def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """See `Store`."""
        with _unavailable_on_error():
            fields = self._redis.hgetall(_name(session_id))
            return _stored(session_id, fields, self._now_ms()) if fields else None

    def write(self, owner: str, writes: Sequence[Write]) -> list[str]:
        """See `Store`; each session is written atomically, all in one round trip.

        A new id is added to its indexes before the session is written, so that none can be missing there, and again
        afterwards, in case `expire` removed it in between.
        """
        new = [write for write in writes if write.create]
        with _unavailable_on_error(), self._redis.pipeline(transaction=False) as pipeline:
            for write in new:
                pipeline.sadd(MODELS, write.model)
                pipeline.sadd(TENANTS, write.tenant)
            _add(pipeline, new)
            first = len(pipeline)
            for write in writes:
                self._write(keys=[_name(write.id)], args=_arguments(owner, write), client=pipeline)
            _add(pipeline, new)
            answers = pipeline.execute()[first : first + len(writes)]
        return [write.id for write, done in zip(writes, answers, strict=True) if not done]

    def renew(self, owner: str, leases: Sequence[tuple[str, int]]) -> list[str]:
        """See `Store`."""
        with _unavailable_on_error(), self._redis.pipeline(transaction=False) as pipeline:
            for session_id, version in leases:
                self._renew(keys=[_name(session_id)], args=[owner, version, LEASE_MS, LEAST_TTL_MS], client=pipeline)
            answers = pipeline.execute()
        return [session_id for (session_id, _), done in zip(leases, answers, strict=True) if not done]

    def delete(self, session_id: str, owner: str, version: int) -> bool:
        """See `Store`; `expire` removes the id from the indexes later."""
        with _unavailable_on_error():
            return bool(self._delete(keys=[_name(session_id)], args=[owner, version]))

    def page(
        self, tenant: str, model: str, before: tuple[float, str] | None, size: int, now_s: float
    ) -> list[SessionSummary]:
        """See `Store`."""
        found: list[SessionSummary] = []
        index, offset = _index(tenant, model), 0
        highest = "+inf" if before is None else repr(before[0])
        with _unavailable_on_error():
            now_ms = self._now_ms()
            while len(found) < size:
                rows = self._redis.zrevrangebyscore(index, highest, "-inf", offset, PAGE, withscores=True)
                ids = [i.decode() for i, created in rows if before is None or (created, i.decode()) < before]
                found += self._heads(ids, now_ms)
                offset += PAGE
                if len(rows) < PAGE:
                    break
        return found[:size]

    def _heads(self, ids: list[str], now_ms: int) -> list[SessionSummary]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in ids:
                pipeline.hmget(_name(session_id), LISTED)
            answers = pipeline.execute()
        return [
            _listed(session_id, dict(zip(LISTED, values, strict=True)), now_ms)
            for session_id, values in zip(ids, answers, strict=True)
            if values[0] is not None
        ]

    def count(self) -> int:
        """See `Store`."""
        with _unavailable_on_error(), self._redis.pipeline(transaction=False) as pipeline:
            for tenant in self._tenants():
                pipeline.zcard(_index(tenant, ""))
            return sum(map(int, pipeline.execute()))

    def count_live(self, tenant: str, now_s: float, exclude: Collection[str], enough: int) -> int:
        """See `Store`. The indexes also hold ids of sessions that are gone, so above `enough` each id is looked up."""
        with _unavailable_on_error():
            indexes = self._indexes(tenant)
            with self._redis.pipeline(transaction=False) as pipeline:
                for index in indexes:
                    pipeline.zcard(index)
                most = sum(map(int, pipeline.execute()))
            return most if most <= enough else sum(self._sum_index(index, exclude) for index in indexes)

    def live_bytes(self, tenant: str, now_s: float, exclude: Collection[str]) -> int:
        """See `Store`. Each of the sessions is looked up: Redis removes expired ones without a word."""
        with _unavailable_on_error():
            return sum(self._sum_index(index, exclude, measure=True) for index in self._indexes(tenant))

    def _indexes(self, tenant: str) -> list[str]:
        return [_index(each, "") for each in (self._tenants() if tenant == ALL_TENANTS else [tenant])]

    def _sum_index(self, index: str, exclude: Collection[str], *, measure: bool = False) -> int:
        """How many sessions of an index there are, or with `measure` how many bytes they take."""
        excluded = set(exclude)
        ids = [i for i in map(bytes.decode, self._redis.zrange(index, 0, -1)) if i not in excluded]
        total = 0
        for first in range(0, len(ids), PAGE):
            with self._redis.pipeline(transaction=False) as pipeline:
                for name in map(_name, ids[first : first + PAGE]):
                    if measure:
                        self._measure(keys=[name], client=pipeline)
                    else:
                        pipeline.exists(name)
                total += sum(pipeline.execute())
        return total

    def expire(self, now_s: float, max_count: int, exclude: Collection[str]) -> int:
        """See `Store`. Redis removes expired sessions itself; this removes their ids, some more with each call.

        A call looks at `max_count` ids, of at most `TENANTS_SWEPT` tenants; the next one goes on where it ended. It
        fails if Redis accepts no changes, because it is a replica or full, also if nothing has expired.
        """
        removed, left = 0, max_count
        with _unavailable_on_error():
            tenants = self._tenants()
            for _ in tenants[:TENANTS_SWEPT]:
                looked, gone = self._expire_some(left)
                removed, left = removed + gone, left - looked
                if not left:
                    break
                self._sweeping = next((other for other in tenants if other > self._sweeping), tenants[0])
                self._swept = 0
            self._redis.sadd(TENANTS, DEFAULT_TENANT)
        return removed

    def _expire_some(self, count: int) -> tuple[int, int]:
        """Looks at `count` more ids of a tenant; returns how many there were and how many were removed."""
        first = self._swept
        ids = [i.decode() for i in self._redis.zrange(_index(self._sweeping, ""), first, first + count - 1)]
        with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in ids:
                pipeline.exists(_name(session_id))
            gone = [i for i, there in zip(ids, pipeline.execute(), strict=True) if not there]
        if gone:
            self._remove(self._sweeping, gone)
        self._swept = first + len(ids) - len(gone)
        return len(ids), len(gone)

    def _remove(self, tenant: str, ids: list[str]) -> None:
        """Removes ids from a tenant's indexes, and adds those again whose sessions were created meanwhile."""
        models = ["", *(model.decode() for model in self._redis.smembers(MODELS))]
        created = {}
        for index in (_index(tenant, model) for model in models):
            created[index] = dict(zip(ids, self._redis.zmscore(index, ids), strict=True))
            self._redis.zrem(index, *ids)
        with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in ids:
                pipeline.exists(_name(session_id))
            back = [session_id for session_id, there in zip(ids, pipeline.execute(), strict=True) if there]
        for index, scores in created.items():
            if again := {i: scores[i] for i in back if scores[i] is not None}:
                self._redis.zadd(index, again)

    def _tenants(self) -> list[str]:
        return sorted({DEFAULT_TENANT, *(tenant.decode() for tenant in self._redis.smembers(TENANTS))})

    def close(self) -> None:
        """See `Store`."""
        self._redis.close()

    def _now_ms(self) -> int:
        seconds, micros = self._redis.time()
        return int(seconds) * 1_000 + int(micros) // 1_000


def _name(session_id: str) -> str:
    """The session's key. A cluster chooses the node by the part in braces."""
    return f"{PREFIX}{{{session_id}}}"


def _index(tenant: str, model: str) -> str:
    """The sorted set of a tenant's ids. The default tenant has those that were written before there were tenants."""
    index = INDEX if tenant == DEFAULT_TENANT else f"{PREFIX}sessions of {quote(tenant, safe='')}"
    return f"{index}:{model}" if model else index


def _add(pipeline: Any, writes: Sequence[Write]) -> None:
    """Adds the ids of new sessions to their indexes."""
    for write in writes:
        for model in ("", write.model):
            pipeline.zadd(_index(write.tenant, model), {write.id: write.created_s})


def _arguments(owner: str, write: Write) -> list[str | bytes | int]:
    """The arguments of `redis_scripts.WRITE`, in order."""
    arguments: list[str | bytes | int] = [owner, write.version, int(write.create), int(write.release)]
    arguments += [LEASE_MS, LEAST_TTL_MS, write.tenant, repr(write.created_s), repr(write.used_s)]
    arguments += [
        int(write.ttl_s * 1e3),
        write.position,
        write.content_bytes,
        write.head,
        write.first_chunk,
        len(write.chunks),
        *write.chunks,
    ]
    if write.head:
        arguments += [write.first_generation, len(write.generations), *write.generations]
    arguments += [len(write.dropped_states), *write.dropped_states, len(write.states)]
    arguments += [part for state in write.states for part in state]
    return arguments


def _stored(session_id: str, fields: dict[bytes, bytes], now_ms: int) -> StoredSession:
    def numbered(kind: bytes) -> list[tuple[int, bytes]]:
        return sorted((int(name[2:]), value) for name, value in fields.items() if name.startswith(kind))

    return StoredSession(
        _listed(session_id, fields, now_ms),
        b"".join(chunk for _, chunk in numbered(b"t:")),
        tuple(record.decode() for _, record in numbered(b"g:")),
        tuple(numbered(b"s:")),
    )


def _listed(session_id: str, fields: dict[bytes, bytes], now_ms: int) -> SessionSummary:
    owner = fields[b"owner"].decode() if int(fields[b"until"]) > now_ms else ""
    created_s, used_s = float(fields[b"created"]), float(fields[b"used"])
    position, tenant = int(fields[b"position"]), (fields.get(b"tenant") or DEFAULT_TENANT.encode()).decode()
    return SessionSummary(session_id, fields[b"head"].decode(), position, created_s, used_s, owner, tenant)


def _check_url(url: str) -> None:
    """Raises `ValueError` for what redis-py would misread: a password that ends the host, a database without number."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("write / ? and # in a password as %2F, %3F and %23")
    if not re.fullmatch("/?[0-9]*", parts.path):
        raise ValueError(f"its database is {parts.path[1:]!r}; must be a number")


def _without_password(url: str) -> str:
    """The URL without user, password and options. A password may have any characters, as long as no check has run."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


@contextlib.contextmanager
def _unavailable_on_error() -> Iterator[None]:
    """Raises `StoreUnavailable` for any error of Redis."""
    try:
        yield
    except redis.RedisError as error:
        error.args = (_COMMAND.sub("", str(error), count=1),)
        raise StoreUnavailable("the session store does not answer or refuses the call") from error
