"""`gruve bench sessions`: the cost of keeping sessions: durability, reading from the store, rewinds, many of them.

Each row answers one question and gives the bound that was promised. Alternatives are measured in turn within one run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gruve.bench.figures import median, percentile
from gruve.bench.load.generator import Workload
from gruve.bench.load.processes import Server
from gruve.bench.load.window import ServerAndClients
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import MEDIUM, MODEL, SMALL, VOCABULARY_SIZE, Size, make_model
from gruve.client import Client
from gruve.decode.choose import DecodeConfig
from gruve.serve.server import ServeConfig
from gruve.sessions.encoding import prepare_write, unpack_session
from gruve.sessions.export import import_session
from gruve.sessions.record import Session
from gruve.sessions.store import Store
from gruve.sessions.store.open import open_store
from gruve.sessions.table import SessionsConfig, SessionTable
from gruve.v1 import session_pb2

SESSIONS = 64
KEY = b"the key of the benchmark's servers"
AT_ONCE = 1_000
"""Sessions written to the store at a time."""
TTL_S = 86_400.0
LEAST_DISTANCE = 64
"""The minimum number of other sessions between two uses of the same session."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsBenchConfig:
    """The amount of each measurement."""

    size: Size = MEDIUM
    rounds: int = 9
    warm_s: float = 1.5
    seconds: float = 5.0
    """How long each server is measured in each round."""
    continued: int = 2_000
    """Sessions that are continued once from the store and once from memory."""
    rewinds: int = 100
    """The number of rewinds, by distances between 1 and 1,000 tokens."""
    stored: int = 100_000
    """Sessions that one server with the default budget serves."""
    stored_size: Size = SMALL
    """The model of those."""
    sampled: int = 5_000
    """The number of them that are continued."""
    client_processes: int = 2
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> SessionsBenchConfig:
        """Smaller amounts, in less than 50 seconds."""
        return cls(rounds=3, warm_s=0.5, seconds=1.5, continued=200, rewinds=10, stored=2_000, sampled=200)


def run_sessions(config: SessionsBenchConfig, report: Report) -> Result:
    """Measures one question after the other."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as name:
        bench = _Bench(config, Path(name), report)
        rows = [bench.durability(), bench.eviction(), bench.rewinding(), bench.many()]
    return Result("sessions", describe_machine(), describe_versions(), rows)


class _Bench:
    """One run."""

    def __init__(self, config: SessionsBenchConfig, folder: Path, report: Report) -> None:
        self._config = config
        self._folder = folder
        self._report = report
        self._random = random.Random(1)  # noqa: S311 - a choice of sessions
        for size in {config.size, config.stored_size}:
            make_model(self._models(size) / MODEL, size)

    def durability(self) -> Row:
        """Tokens per second of sessions on SQLite, compared with sessions in memory."""
        config = self._config
        workload = Workload(MODEL, VOCABULARY_SIZE)
        stores = {"memory": "memory", "sqlite": self._store("durability")}
        tokens: dict[str, list[float]] = {name: [] for name in stores}
        cpu: dict[str, list[float]] = {name: [] for name in stores}
        with contextlib.ExitStack() as stack:
            sides = {
                name: ServerAndClients(stack, self._serving(store, config.size), config.client_processes)
                for name, store in stores.items()
            }
            for i in range(config.rounds):
                for name in in_turn(sides, i):
                    loaded = sides[name].closed_loop(workload, SESSIONS, config.warm_s, config.seconds)
                    tokens[name].append(loaded.figures.tokens_per_s)
                    cpu[name].append(loaded.cpu_s_per_million_tokens)
                self._report(f"round {i + 1}: " + ", ".join(f"{n} {t[-1]:.0f} tokens/s" for n, t in tokens.items()))
        ratios = [1 - s / m for s, m in zip(tokens["sqlite"], tokens["memory"], strict=True)]
        return {
            "question": "durability",
            "sessions": SESSIONS,
            **{f"{name}_tokens_per_s": median(found) for name, found in tokens.items()},
            "cost_percent": 100 * median(ratios),
            "cost_percent_bound": 5.0,
            **{f"{name}_cpu_s_per_million_tokens": median(found) for name, found in cpu.items()},
        }

    def eviction(self) -> Row:
        """The time to the first token of a session that has left memory, then of its next turn, from memory."""
        config = self._config
        store, count = self._store("eviction"), max(config.continued // 4, 2 * LEAST_DISTANCE)
        ids = self._fill(store, config.size, count, 300)
        budget = SessionsConfig(budget_bytes=LEAST_DISTANCE * 4 * config.size.hidden * config.size.layers)
        evicted, kept = [], []
        with self._server(store, config.size, budget) as server, Client(server.target) as client:
            for session in ids[-8:]:
                _continue(client, session)  # connections and code are warm from here on
            for i in range(config.continued):
                session = ids[i % (count - 8)]
                evicted.append(_continue(client, session))
                kept.append(_continue(client, session))
            where = [session.location for session in client.list_sessions()]
        stored = sum(place == session_pb2.SESSION_LOCATION_STORE for place in where)
        row: Row = {
            "question": "eviction",
            "continued": config.continued,
            "sessions": count,
            "in_store_at_the_end": stored,
            "stored_ttft_ms_p50": percentile(evicted, 50),
            "memory_ttft_ms_p50": percentile(kept, 50),
            "stored_ttft_ms_p99": percentile(evicted, 99),
            "memory_ttft_ms_p99": percentile(kept, 99),
            "added_ms_p50": percentile(evicted, 50) - percentile(kept, 50),
            "added_ms_p99": percentile(evicted, 99) - percentile(kept, 99),
            "added_ms_p99_bound": 2.0,
        }
        self._report(f"coming back from the store adds {row['added_ms_p99']:.2f} ms at p99, {stored} were there")
        return row

    def rewinding(self) -> Row:
        """The number of steps that rebuild the state of a rewind, and whether the same tokens follow again."""
        config = self._config
        distances = sorted({1, 1_000, *(self._random.randint(1, 1_000) for _ in range(config.rewinds))})
        steps, times, differing = [], [], 0
        with self._server(self._store("rewinding"), config.size) as server, Client(server.target) as client:
            origin = client.create_session(MODEL).id
            for tokens in (700, 900, 400, 1_100):  # a conversation: several turns of some length
                _drain(client, origin, tokens)
            whole = list(client.get_session(origin).token_ids)
            for distance in distances:
                (copy,) = client.fork_session(origin)
                to = len(whole) - distance
                client.rewind_session(copy.id, to)
                kept = import_session(client.export_session(copy.id), KEY)
                steps.append(max(0, kept.position - 1 - kept.consumed))
                times.append(_continue(client, copy.id, prompt=False))
                differing += client.get_session(copy.id).token_ids[to] != whole[to]
        self._report(f"rewinds of up to 1,000 tokens cost at most {max(steps)} steps")
        return {
            "question": "rewinding",
            "rewinds": len(distances),
            "steps_p50": percentile(steps, 50),
            "steps_max": max(steps),
            "steps_max_bound": 256,
            "ttft_ms_p99": percentile(times, 99),
            "differing_tokens": differing,
        }

    def many(self) -> Row:
        """One server with the default budget and many more sessions than fit in memory."""
        config = self._config
        store = self._store("many")
        began_s = time.monotonic()
        ids = self._fill(store, config.stored_size, config.stored, 64)
        self._report(f"{len(ids)} sessions were stored in {time.monotonic() - began_s:.0f} s")
        with self._server(store, config.stored_size) as server, Client(server.target) as client:
            before_mb = server.rss_mb()
            chosen = self._random.sample(ids, min(config.sampled, len(ids)))
            times = [_continue(client, session) for session in chosen]
            listed = sum(1 for _ in zip(client.list_sessions(), range(1_000), strict=False))
            after_mb = server.rss_mb()
        row: Row = {
            "question": "many",
            "stored": len(ids),
            "store_mb": round(Path(store.partition(":")[2]).stat().st_size / 1e6, 1),
            "continued": len(times),
            "listed": listed,
            "budget_mib": SessionsConfig().budget_bytes / 2**20,
            "rss_mb_before": before_mb,
            "rss_mb": after_mb,
            "ttft_ms_p50": percentile(times, 50),
            "ttft_ms_p99": percentile(times, 99),
        }
        self._report(f"{len(ids)} sessions: {after_mb:.0f} MB resident after {len(times)} were continued")
        return row

    def _models(self, size: Size) -> Path:
        return self._folder / f"models-{size}"

    def _store(self, name: str) -> str:
        return f"sqlite:{self._folder / name}.db"

    def _server(self, store: str, size: Size, sessions: SessionsConfig | None = None) -> Server:
        return Server(self._serving(store, size, sessions))

    def _serving(self, store: str, size: Size, sessions: SessionsConfig | None = None) -> ServeConfig:
        sessions = dataclasses.replace(sessions or SessionsConfig(), idle_ttl_s=TTL_S)
        return ServeConfig(
            self._models(size), store=store, decode=self._config.decode, sessions=sessions, session_key=KEY, drain_s=0.0
        )

    def _fill(self, where: str, size: Size, count: int, tokens: int) -> list[str]:
        """Writes copies of a session that a server has made into a store, and returns their ids."""
        with self._server(where, size) as server, Client(server.target) as client:
            origin = client.create_session(MODEL).id
            _drain(client, origin, tokens)
        store = open_store(where)
        assert store is not None  # noqa: S101 - the store is a file
        with contextlib.closing(store):
            stored = store.read(origin, time.time())
            assert stored is not None  # noqa: S101 - the session was created above
            return _copy(store, unpack_session(stored, 1), count)


def _copy(store: Store, origin: Session, count: int) -> list[str]:
    """Copies a session within the store, through the store's own interface."""
    minting = SessionTable(SessionsConfig(idle_ttl_s=TTL_S, budget_bytes=1 << 40), key=KEY)
    ids: list[str] = []
    while len(ids) < count:
        copies = []
        for _ in range(min(AT_ONCE, count - len(ids))):
            copy = minting.create(MODEL, origin.digest, origin.numerics_id)
            copy.copy_from(origin)
            copies.append(copy)
        store.write("bench", [prepare_write(copy, release=True).write for copy in copies])
        for copy in copies:
            minting.remove(copy)
        ids += [copy.id for copy in copies]
    return ids


def _drain(client: Client, session: str, tokens: int) -> None:
    for _ in client.generate([5], session_id=session, max_tokens=tokens, ignore_eos=True):
        pass


def _continue(client: Client, session: str, *, prompt: bool = True) -> float:
    """Continues a session by one token, after a prompt of one, and returns the milliseconds to it."""
    began_s = time.perf_counter()
    tokens: Sequence[int] = ()
    took_ms = 0.0
    for chunk in client.generate([7] if prompt else None, session_id=session, max_tokens=1, ignore_eos=True):
        took_ms = took_ms or 1e3 * (time.perf_counter() - began_s)
        tokens = chunk.token_ids or tokens
    if len(tokens) != 1:
        raise RuntimeError(f"session {session[:8]} was continued by {len(tokens)} tokens, not by one")
    return took_ms
