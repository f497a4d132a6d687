"""What tenants use of their limits: open streams, and tokens and requests of the last minute.

A stream reserves all tokens that it may use when it is admitted, and gives back at its end what it did not use. Limits
of tokens and requests are token buckets: they hold a minute's worth, and refill evenly. The limits of sessions and of
their bytes are checked where those are counted; the ledger only says what they are. Pure: no gRPC and no clock (a time
is an argument).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from gruve.errors import LimitExceeded
from gruve.serve.callers.identity import Limits
from gruve.sessions.persistence import SessionBounds

Count = Callable[[], int]
MINUTE_S = 60.0
MAX_IDLE_TENANTS = 1_024
"""Beyond this many tenants, those that use nothing and have nothing to wait for are forgotten."""


@dataclasses.dataclass(slots=True)
class _Usage:
    """What one tenant, or all of them together, use."""

    streams: int = 0
    tokens: float = 0.0
    """Tokens taken from the bucket and not yet refilled."""
    requests: float = 0.0
    updated_s: float = 0.0

    def refill(self, limits: Limits, now_s: float) -> None:
        """Brings both buckets to `now_s`."""
        minutes = max(0.0, now_s - self.updated_s) / MINUTE_S
        self.updated_s = max(self.updated_s, now_s)
        tokens, requests = limits.tokens_per_minute, limits.requests_per_minute
        self.tokens = 0.0 if tokens is None else max(0.0, self.tokens - minutes * tokens)
        self.requests = 0.0 if requests is None else max(0.0, self.requests - minutes * requests)

    @property
    def idle(self) -> bool:
        """Whether forgetting it changes nothing."""
        return not (self.streams or self.tokens or self.requests)


def _none() -> int:
    return 0


@functools.lru_cache(maxsize=MAX_IDLE_TENANTS)  # every request asks, and refusals must be cheap
def _complete(own: Limits, common: Limits) -> Limits:
    """`own`, with the limits that it leaves open taken from `common`."""
    given = {name: value for name, value in dataclasses.asdict(own).items() if value is not None}
    return dataclasses.replace(common, **given)


class Reservation:
    """What one stream has reserved, until `close`."""

    def __init__(self, usages: tuple[tuple[_Usage, Limits], ...], ledger: Ledger) -> None:
        self._usages = usages
        self._ledger = ledger
        self.tokens = 0
        """How many tokens it has reserved."""
        self._closed = False

    def reserve_tokens(self, tokens: int, now_s: float) -> None:
        """Reserves the tokens that the stream may use. Raises `LimitExceeded`, and then reserves nothing."""
        for usage, limits in self._usages:
            usage.refill(limits, now_s)
            bound = limits.tokens_per_minute
            if bound is not None and usage.tokens + tokens > bound:
                wait_s = None if tokens > bound else (usage.tokens + tokens - bound) / bound * MINUTE_S
                used = f"{tokens} tokens beside {usage.tokens:.0f} of the last minute"
                raise self._ledger.exceeded("tokens_per_minute", bound, used, usage, wait_s)
        for usage, limits in self._usages:
            usage.tokens += tokens if limits.tokens_per_minute is not None else 0
        self.tokens += tokens

    def add_tokens(self, tokens: int, now_s: float) -> None:
        """Counts tokens beyond those reserved, also if a limit is exceeded by them.

        Raises `LimitExceeded` if a limit was exceeded before, and then counts nothing.
        """
        for usage, limits in self._usages:
            usage.refill(limits, now_s)
            bound = limits.tokens_per_minute
            if bound is not None and usage.tokens > bound:
                used = f"{usage.tokens:.0f} tokens of the last minute count, so none may be inserted or computed again"
                wait_s = (usage.tokens - bound) / bound * MINUTE_S if bound else None
                raise self._ledger.exceeded("tokens_per_minute", bound, used, usage, wait_s)
        for usage, limits in self._usages:
            usage.tokens += tokens if limits.tokens_per_minute is not None else 0
        self.tokens += tokens

    def close(self, used_tokens: int, now_s: float) -> None:
        """Ends the stream, which used so many tokens; gives back the rest of those reserved. The first call counts."""
        if self._closed:
            return
        self._closed = True
        for usage, limits in self._usages:
            usage.refill(limits, now_s)
            usage.streams -= 1
            if limits.tokens_per_minute is not None:
                usage.tokens = max(0.0, usage.tokens + used_tokens - self.tokens)


class Ledger:
    """The usage of one server. The limits come with each request, because a tenant's may change."""

    def __init__(self, total: Limits | None = None, tenant: Limits | None = None) -> None:
        """`total` limits all tenants together. `tenant` limits each tenant that has no limit of its own."""
        self._total = total or Limits()
        self._tenant = tenant or Limits()
        self._all = _Usage()
        self._tenants: dict[str, _Usage] = {}

    def __len__(self) -> int:
        """How many tenants it remembers."""
        return len(self._tenants)

    def usage(self, tenant: str) -> tuple[int, float]:
        """The tenant's open streams, and the tokens that count against its limit."""
        usage = self._tenants.get(tenant, _Usage())
        return usage.streams, usage.tokens

    def limits_of(self, own: Limits) -> Limits:
        """A tenant's own limits, completed by those for every tenant."""
        return _complete(own, self._tenant)

    def session_bounds(self, own: Limits) -> SessionBounds:
        """How many sessions and bytes a tenant with these limits may have, and all tenants together."""
        tenant, total = self.limits_of(own), self._total
        return SessionBounds(tenant.sessions, total.sessions, tenant.stored_bytes, total.stored_bytes)

    def begin(
        self, tenant: str, own: Limits, now_s: float, *, waiting: Count = _none, all_waiting: Count = _none
    ) -> Reservation:
        """Counts a request and opens a stream. Raises `LimitExceeded`, and then counts nothing.

        `waiting` says how many of the tenant's sequences wait for a slot now, `all_waiting` how many of all tenants.
        They are called only where there is a limit, because counting takes longer with every model.
        """
        if len(self._tenants) >= MAX_IDLE_TENANTS and tenant not in self._tenants:
            self._forget_idle(now_s)
        usage = self._tenants.setdefault(tenant, _Usage())
        usages = ((usage, self.limits_of(own)), (self._all, self._total))
        for (which, limits), count in zip(usages, (waiting, all_waiting), strict=True):
            which.refill(limits, now_s)
            if limits.streams is not None and which.streams >= limits.streams:
                wait_s = 1.0 if limits.streams else None
                raise self.exceeded("streams", limits.streams, f"{which.streams} streams are open", which, wait_s)
            if limits.waiting is not None and (wait := count()) >= limits.waiting:
                raise self.exceeded("waiting", limits.waiting, f"{wait} requests wait for a slot", which, 1.0)
            bound = limits.requests_per_minute
            if bound is not None and which.requests + 1 > bound:
                wait_s = (which.requests + 1 - bound) / bound * MINUTE_S if bound else None
                used = f"{which.requests:.0f} requests count in the last minute"
                raise self.exceeded("requests_per_minute", bound, used, which, wait_s)
        for which, limits in usages:
            which.streams += 1
            which.requests += 1 if limits.requests_per_minute is not None else 0
        return Reservation(usages, self)

    def exceeded(self, name: str, bound: int, used: str, usage: _Usage, wait_s: float | None) -> LimitExceeded:
        """The error of a request above a limit. `wait_s` says when it may succeed, None that it never will."""
        whose = "the server's" if usage is self._all else "the tenant's"
        return LimitExceeded(f"{used}; {whose} limit {name} is {bound}", name, bound, wait_s)

    def _forget_idle(self, now_s: float) -> None:
        """Forgets the tenants that use nothing, so that many clients that came once take no memory."""
        for usage in self._tenants.values():
            if now_s - usage.updated_s >= MINUTE_S:  # every bucket is full again after a minute
                usage.tokens = usage.tokens if usage.streams else 0.0
                usage.requests = usage.requests if usage.streams else 0.0
        self._tenants = {tenant: usage for tenant, usage in self._tenants.items() if not usage.idle}
