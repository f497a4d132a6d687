"""Which tenants had so many requests refused lately that more are refused unread.

Reading a request to refuse it takes about three times as long as refusing it unread. Under a flood, the running streams
lack that time. So each tenant has a token bucket of refusals. While it is empty, the tenant's requests are refused
unread, although some of them could have been served.

Requests that are read side by side could all be refused, and empty the bucket for long. Slots would become free
meanwhile, and nobody would get them. So once a tenant's bucket is half empty, a request takes from it while it is read,
and gives back what it took when it is accepted. Pure: no gRPC and no clock (a time is an argument).
"""

from __future__ import annotations

import collections

PER_SECOND = 50
"""The refusals a second that are given in full, with their reason, once the bucket is empty."""
BURST = 200
"""The refusals that a full bucket gives in full."""
MAX_TENANTS = 1_024
"""Beyond this many tenants, the one whose refusals are the oldest is forgotten."""


class Refusals:
    """The refusals of each tenant."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}
        """Refusals taken from the bucket and not yet refilled, and when; the tenant refused last is last."""
        self._reading: collections.Counter[str] = collections.Counter()
        """How many requests of each tenant are read at the moment, of those that `begin_reading` counted."""

    def __bool__(self) -> bool:
        """Whether any tenant is remembered. If none is, no request is refused unread."""
        return bool(self._spent)

    def __len__(self) -> int:
        """How many tenants are remembered."""
        return len(self._spent)

    def add(self, tenant: str, now_s: float) -> None:
        """Counts a request of the tenant that was read and refused."""
        spent = min(float(BURST), self._refilled(tenant, now_s) + 1)
        self._spent.pop(tenant, None)
        self._spent[tenant] = (spent, now_s)
        if len(self._spent) > MAX_TENANTS:
            del self._spent[next(iter(self._spent))]

    def are_too_many(self, tenant: str, now_s: float) -> bool:
        """Whether the tenant's bucket is empty."""
        spent = self._refilled(tenant, now_s)
        if not spent:
            self._spent.pop(tenant, None)
        return spent + self._reading[tenant] > BURST - 1

    def begin_reading(self, tenant: str, now_s: float) -> bool:
        """Whether the tenant's bucket is half empty; counts a request that is read then, until `end_reading`."""
        if self._refilled(tenant, now_s) < BURST / 2:
            return False
        self._reading[tenant] += 1
        return True

    def end_reading(self, tenant: str) -> None:
        """A request that `begin_reading` counted is accepted, refused or gone."""
        self._reading[tenant] -= 1
        if not self._reading[tenant]:
            del self._reading[tenant]

    def _refilled(self, tenant: str, now_s: float) -> float:
        spent, at_s = self._spent.get(tenant, (0.0, now_s))
        return max(0.0, spent - PER_SECOND * max(0.0, now_s - at_s))
