"""The thread-safe entrance of an engine: sequences to decode, and commands for the sequences it has.

Any thread may call any method. Knows no backend, no scheduler and no call.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple

from gruve.engine.sequence import Admission, FinishReason, Sequence
from gruve.errors import Draining, EngineFailed, QueueFull


class Enter(NamedTuple):
    """An admitted sequence joins its tenant's waiting queue, at the end or in front (`first`)."""

    sequence: Sequence
    first: bool = False


class End(NamedTuple):
    """A sequence ends at the next call, if it has not ended before."""

    sequence_id: int
    reason: FinishReason


class Grant(NamedTuple):
    """A sequence with a bound may generate `credit` tokens more, and decode `window` more."""

    sequence_id: int
    credit: int = 0
    window: int = 0


Command = Enter | End | Grant


class Intake:
    """The admitted sequences by id, and the commands that the loop has not applied yet."""

    def __init__(self, slots: int, max_waiting: int, clock: Callable[[], float]) -> None:
        """At most `slots + max_waiting` sequences are admitted at a time."""
        self._slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._commands: collections.deque[Command] = collections.deque()
        self._sequences: dict[int, Sequence] = {}
        self._tenants: collections.Counter[str] = collections.Counter()
        """How many sequences each tenant has."""
        self._closing = False
        self._incident: str | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, sequence_id: object) -> bool:
        return sequence_id in self._sequences

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences admitted and not yet ended."""
        return list(self._sequences.values())

    @property
    def failed(self) -> bool:
        """Whether `fail` has been called."""
        return self._incident is not None

    def of_tenant(self, tenant: str) -> int:
        """How many sequences of a tenant are admitted and not yet ended."""
        return self._tenants.get(tenant, 0)

    def find(self, sequence_id: int) -> Sequence | None:
        """The sequence, unless it has ended."""
        return self._sequences.get(sequence_id)

    def admit(self, admission: Admission, credit: int | None, *, readmitted: bool, preempted: bool = False) -> int:
        """See `Engine.admit`."""
        with self._changed:
            if self._incident is not None:
                raise EngineFailed(self._incident)
            if self._closing:
                raise Draining("the server is shutting down and takes no new sequences")
            if len(self._sequences) >= self._slots + self._max_waiting and not (readmitted or preempted):
                raise QueueFull(
                    f"{len(self._sequences)} sequences run or wait; at most {self._slots} run and "
                    f"{self._max_waiting} wait"
                )
            sequence = Sequence(next(self._ids), admission, self._clock(), credit=credit)
            self._sequences[sequence.id] = sequence
            self._tenants[sequence.tenant] += 1
            self._commands.append(Enter(sequence, preempted))
            self._changed.notify()
        return sequence.id

    def put(self, command: Command) -> None:
        """Queues a command and wakes a worker."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def take_commands(self) -> tuple[list[Command], bool]:
        """Removes and returns the queued commands, and whether the engine is still open."""
        with self._changed:
            commands = list(self._commands)
            self._commands.clear()
            return commands, not self._closing and self._incident is None

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence that has ended; its place is free."""
        with self._changed:
            del self._sequences[sequence.id]
            self._tenants[sequence.tenant] -= 1
            if not self._tenants[sequence.tenant]:
                del self._tenants[sequence.tenant]

    def wait(self, until_s: float | None, has_work: Callable[[], bool]) -> None:
        """Blocks until there is something to do: a command, closing, `has_work()`, or the time `until_s`.

        May return early. The thread that makes `has_work` true must call `wake` afterwards.
        """
        with self._changed:
            if self._commands or self._closing or self._incident is not None or has_work():
                return
            timeout_s = None if until_s is None else until_s - self._clock()
            if timeout_s is None or timeout_s > 0:
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        """Wakes one worker that waits."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Refuses new sequences with `Draining` and wakes all workers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def fail(self, incident: str) -> list[Sequence]:
        """Refuses new sequences with `EngineFailed`, wakes all workers, and removes and returns what is left."""
        with self._changed:
            self._incident = incident
            self._changed.notify_all()
            left = list(self._sequences.values())
            self._sequences.clear()
            self._tenants.clear()
        return left
