"""The retry policy: whether a call that failed is made again, after which delay, and the events that report it.

Knows no socket and no clock, so both clients share it, and it can be tested without either.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gruve.client.errors import CallFailed, Overloaded, SessionBusy


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How often a call that was lost is made again, and after which delay.

    The delay doubles from `backoff_s` to `backoff_max_s`, is reduced by a random part of up to a half, and is never
    shorter than the server asks for. With several addresses each one is tried once before the first delay.
    """

    max_reconnects: int = 20
    """Calls in a row, for each address, without progress: about a minute, in which a server can be restarted."""
    first_reconnects: int = 3
    """The same bound until any server has answered: the address may be wrong."""
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    wait_when_refused: bool = True
    """Whether a call that a server refuses for now (`Overloaded`, `SessionBusy`) is made again after the delay that it
    names. A program that passes the refusal on to its own caller sets False."""


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """A call failed and is made again after `delay_s`."""

    address: str
    """The address of the call that failed."""
    next_address: str
    """The address of the next call."""
    delay_s: float
    attempt: int
    """1 for the first retry since a call last made progress."""
    failure: CallFailed
    """Why the call failed; `failure.connection_lost` tells a lost connection from a server that asked for a retry."""


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A call that had to be made again made progress: a stream continues, or a response arrived."""

    address: str
    attempts: int
    """The number of retries that it took."""


OnReconnect = Callable[[Reconnecting | Reconnected], None]
"""Called in the thread or event loop that waits for the call. It must return soon; what it raises ends the call."""


class Attempts:
    """Counts the calls in a row that made no progress."""

    def __init__(self, policy: Reconnect, addresses: int, answered: bool) -> None:
        self.failed_in_a_row = 0
        self._policy = policy
        self._addresses = addresses
        self._answered = answered

    def succeeded(self) -> None:
        """Resets the count."""
        self._answered = True
        self.failed_in_a_row = 0

    def failed(self, failure: CallFailed) -> float:
        """Returns the delay before the next call in seconds; raises `failure` if there is to be none."""
        self._answered = self._answered or bool(failure.reason)
        reconnects = self._policy.max_reconnects if self._answered else self._policy.first_reconnects
        if not failure.retryable or self.failed_in_a_row >= reconnects * self._addresses:
            raise failure
        if not self._policy.wait_when_refused and isinstance(failure, Overloaded | SessionBusy):
            raise failure
        self.failed_in_a_row += 1
        rounds, tried = divmod(self.failed_in_a_row, self._addresses)
        if tried:
            return 0.0
        backoff_s = min(self._policy.backoff_s * 2.0 ** (rounds - 1), self._policy.backoff_max_s)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients out, keeps no secret
        return max(backoff_s * jitter, failure.retry_after_s or 0.0)
