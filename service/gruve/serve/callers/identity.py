"""Who calls: the tenant, role and limits of the request that is being served.

The interceptor sets the identity of each rpc before the rpc's method runs; everything below reads it with
`current_identity`. Knows no gRPC and no credentials.
"""

from __future__ import annotations

import contextvars
import dataclasses
import enum
import functools
import urllib.parse

from gruve.errors import InvalidField
from gruve.sessions.record import DEFAULT_TENANT

MAX_TENANT_CHARACTERS = 128
MAX_WEIGHT = 1_000.0
MIN_LIMITS = {"waiting": 1}
"""The minimum of a limit, if that is not 0."""
MAX_LIMIT = 1 << 53
"""The maximum of every limit: a float still holds it exactly."""


class Role(enum.IntEnum):
    """What an identity may do. A role includes those before it."""

    USE = 1
    """Generate, score, list models, and use the tenant's own sessions."""
    ADMIN = 2
    """Also reload models, use the sessions of other tenants, and read channelz."""


ROLE_NAMES = {role.name.lower(): role for role in Role}
"""The roles by the names that files of keys and tokens have for them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may use at a time. None means no limit of its own.

    Raises `InvalidField` for a value that is no whole number of 0 to `MAX_LIMIT`, or of 1 or more for `waiting`: a
    request waits for a moment even while slots are free.
    """

    streams: int | None = None
    """Streams that run or wait."""
    waiting: int | None = None
    """Requests that wait for a slot."""
    sessions: int | None = None
    """Sessions, in memory and in the store."""
    stored_bytes: int | None = None
    """Bytes of the sessions in the store."""
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        for limit, value in dataclasses.asdict(self).items():
            minimum = MIN_LIMITS.get(limit, 0)
            if value is not None and (type(value) is not int or not minimum <= value <= MAX_LIMIT):
                raise InvalidField(f"limits.{limit}", f"{value!r} must be a whole number of {minimum} to {MAX_LIMIT}")


NO_LIMITS = Limits()


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """The caller of a request.

    Without authentication the tenant is the peer's address without its port, such as `ipv4:10.0.0.1`: it separates
    clients for fairness and limits, and proves nothing.
    """

    tenant: str
    role: Role
    key_name: str = ""
    """The name of the API key; "" if the caller has none. It is not secret."""
    weight: float = 1.0
    """The tenant's share of the machine, relative to that of others."""
    limits: Limits = NO_LIMITS
    authenticated: bool = True
    acts_for: str = ""
    """The tenant whose sessions an admin has asked to use; "" for its own."""

    @property
    def owner(self) -> str:
        """The tenant that sessions are kept under: `DEFAULT_TENANT` for everybody without authentication."""
        return (self.acts_for or self.tenant) if self.authenticated else DEFAULT_TENANT


LOCAL = Identity("local", Role.ADMIN, authenticated=False)
"""The identity outside of an rpc."""
_current: contextvars.ContextVar[Identity] = contextvars.ContextVar("identity", default=LOCAL)


def is_tenant(name: object) -> bool:
    """Whether a value can name a tenant: 1 to 128 printable characters."""
    return isinstance(name, str) and 1 <= len(name) <= MAX_TENANT_CHARACTERS and name.isprintable()


def current_identity() -> Identity:
    """The identity of the rpc that this task serves; `LOCAL` outside of one."""
    return _current.get()


def set_identity(identity: Identity) -> None:
    """Sets the identity for the rest of this task, which serves one rpc, and for the tasks that it starts."""
    _current.set(identity)


@functools.lru_cache(maxsize=1_024)  # a connection has many calls
def anonymous(peer: str) -> Identity:
    """The identity of a caller that is not authenticated. `peer` is gRPC's name of it, such as `ipv4:10.0.0.1:4711`."""
    return Identity(_address(peer), Role.ADMIN, authenticated=False)


def _address(peer: str) -> str:
    """A peer without its port: every connection has another one."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    return f"{kind}:{rest.rpartition(':')[0]}" if kind in ("ipv4", "ipv6") else kind
