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
    """Calls in a row, for each address, without progress: about a minute, in which a server can be restarted. In
    `complete` progress of one text counts for all."""
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


@dataclass(slots=True)
class Progress:
    """What the generations of one method call have achieved together."""

    made: int = 0
    """Counts the calls that were answered and the chunks that were read; compared, so a lost increment is harmless."""


class Attempts:
    """Counts the calls in a row that made no progress.

    Generations that one method makes at the same time share their `progress`: while a limit admits one after the other,
    those that still wait do not give up.
    """

    def __init__(self, policy: Reconnect, addresses: int, answered: bool, progress: Progress | None = None) -> None:
        self.failed_in_a_row = 0
        self._policy = policy
        self._addresses = addresses
        self._answered = answered
        self._progress = progress or Progress()
        self._seen = self._progress.made
        self._allowed_from = 0
        """The value of `failed_in_a_row` when progress was last seen."""

    def succeeded(self) -> None:
        """Resets the count."""
        self._answered = True
        self.failed_in_a_row = self._allowed_from = 0
        self._progress.made += 1

    def failed(self, failure: CallFailed) -> float:
        """Returns the delay before the next call in seconds; raises `failure` if there is to be none."""
        self._answered = self._answered or bool(failure.reason)
        if self._seen != self._progress.made:
            self._seen, self._allowed_from = self._progress.made, self.failed_in_a_row
        reconnects = self._policy.max_reconnects if self._answered else self._policy.first_reconnects
        if not failure.retryable or self.failed_in_a_row - self._allowed_from >= reconnects * self._addresses:
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
