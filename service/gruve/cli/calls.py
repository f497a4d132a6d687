"""Connects commands with a server, and explains failed calls in one line."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gruve.cli.exit_codes import FAILED, USAGE
from gruve.cli.output.terminal import Failure, say_note

if TYPE_CHECKING:
    from gruve.client import CallFailed, Client, Reconnected, Reconnecting
    from gruve.v1.model_pb2 import Model

FLAGS = {"session_id": "--session", "to_position": "POSITION"}
"""The flag of a request field, where it is not the field's own name."""
NOTE_EVERY_S = 1.0
PORT_HINT = 'HOST:PORT, such as "{}:50051"'
MAX_PORT = 65_535
TLS_CURE = "if it has TLS, give --tls or --ca, and --cert if it asks for certificates"
TLS_FAULTS = (
    ("WRONG_VERSION_NUMBER", "has no TLS", "leave out --tls, --ca and --cert, and GRUVE_TLS, GRUVE_CA and GRUVE_CERT"),
    ("Hostname Verification", "has a certificate of another host", "give --address a host that the certificate names"),
    ("handshake failed", "has a certificate that is not trusted", "--ca names the authorities of its certificate"),
)
"""A sign in gRPC's message that TLS failed, what that means of the server, and what may help."""


@contextlib.contextmanager
def connected(
    addresses: str,
    options: Mapping[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    on_reconnect: ReconnectNotes | None = None,
) -> Iterator[Client]:
    """A client of the servers at `addresses`, separated by commas. A failed call becomes a `Failure`.

    `options` are those of `client_options`. `timeout_s` is the timeout of the calls, for the message. Calls that wait
    are noted on standard error, unless `on_reconnect` notes them elsewhere.
    """
    from gruve.client import CallFailed, Client

    with Client(
        split_address(addresses), on_reconnect=on_reconnect or ReconnectNotes(say_note), **(options or {})
    ) as client:
        try:
            yield client
        except CallFailed as error:
            raise failure_of(error, addresses, timeout_s) from error


def split_address(given: str) -> list[str]:
    """The addresses in the value of --address. Raises `Failure` if there is none, or one without a usable port."""
    found = [address.strip() for address in given.split(",") if address.strip()]
    if not found:
        raise Failure(f"--address is {given!r}; must be HOST:PORT, or several with commas between", USAGE)
    for address in found:
        if fault := _address_fault(address):
            raise Failure(f"--address names {address!r}, {fault}", USAGE)
    return found


def _address_fault(address: str) -> str:
    """What is wrong with an address; empty for HOST:PORT and for gRPC's own forms, such as unix:PATH and dns:///HOST."""
    host = re.sub(r"^https?://", "", address).rstrip("/")
    if host != address.rstrip("/"):
        return f"which is a URL; must be {PORT_HINT.format(host.partition(':')[0])}"
    if "://" in address or address.startswith("unix:"):
        return ""
    port = re.search(r"[^:]:(\d+)$", address)
    if port is None:
        return f"which has no port; must be {PORT_HINT.format(address)}"
    return "" if 1 <= int(port[1]) <= MAX_PORT else f"whose port must be 1 to {MAX_PORT}"


def failure_of(error: CallFailed, addresses: str, timeout_s: float | None = None) -> Failure:
    """The `Failure` that explains a failed call: out-of-range values are wrong usage, everything else a failure."""
    return Failure(explain(error, addresses, timeout_s), USAGE if error.reason == "INVALID_FIELD" else FAILED)


def find_model(client: Client, name: str) -> Model | None:
    """The model that a name means, such as `folk` or `folk@2`; its `name` is the one given. None if there is none."""
    from gruve.client import ModelNotFound

    try:
        model = client.get_model(name)
    except ModelNotFound:
        return None
    model.name = name
    return model


def check_session_model(client: Client, session: str, name: str) -> None:
    """Raises `Failure` unless a session is one of the model that a name means."""
    kept = client.get_session(session, transcript=False).session
    if kept.model == name:
        return
    model = find_model(client, name)
    if model is None or (name.partition("@")[0], model.digest) != (kept.model, kept.model_digest):
        raise Failure(f"session {session} is one of the model {kept.model!r}, not {name!r}")


def default_temperature(model: Model | None) -> float | None:
    """The temperature that a model recommends; None, which leaves it to the server, if it or its server names none."""
    return model.default_temperature if model is not None and model.HasField("default_temperature") else None


def explain(error: CallFailed, addresses: str, timeout_s: float | None = None) -> str:
    """What went wrong, and what may help."""
    if error.reason == "INVALID_FIELD" and error.violations:
        return "; ".join(f"{_flag(wrong.field)}: {wrong.description}" for wrong in error.violations)
    if error.code.name == "DEADLINE_EXCEEDED" and not error.reason:
        return f"no answer within {timeout_s:g} s from {addresses}" if timeout_s else f"no answer from {addresses}"
    if error.code.name == "UNAUTHENTICATED":
        return f"{error}: set GRUVE_API_KEY, or give --api-key-file"
    if error.connection_lost:
        return "; ".join(unreached(error, addresses))
    return str(error)


def unreached(error: CallFailed, addresses: str) -> tuple[str, str]:
    """Why no connection came about, and what may help."""
    for sign, what, cure in TLS_FAULTS:
        if sign in error.message:
            return f"the server at {addresses} {what}", cure
    cause = _cause(error.message)
    cure = TLS_CURE if cause == "Socket closed" else "`gruve serve` starts one"
    return f"no server answers at {addresses} ({cause})", cure


def _flag(field: str) -> str:
    """The flag that sets a field of a request."""
    name = field.rpartition(".")[2].partition("[")[0]
    return FLAGS.get(name, "PROMPT" if field.startswith(("prompt", "text")) else f"--{name.replace('_', '-')}")


def _cause(message: str) -> str:
    """The last cause in gRPC's message, which lists everything that was tried."""
    cause = message.rpartition(": ")[2]
    return cause if cause.count("[") == cause.count("]") else re.sub(r"\]+$", "", cause)


class ReconnectNotes:
    """Notes that a call waits, because a connection is lost or the server refuses it for now, and that it continues.

    Of lost connections it is silent until a server has answered or `established` is called: a server that never
    answered is an error, not a lost connection.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._established = False
        self._since_s = 0.0
        """When the call began to wait."""
        self._noted_s: float | None = None
        """When that was noted last."""
        self._lost = False
        """Whether it was noted that a connection is lost."""

    def established(self) -> None:
        """A call has been answered."""
        self._established = True

    def __call__(self, event: Reconnecting | Reconnected) -> None:
        """Takes an event of the client."""
        from gruve.client import Reconnecting

        now = time.monotonic()
        if not isinstance(event, Reconnecting):
            if self._noted_s is not None:
                what = "connected again" if self._lost else "accepted"
                self._note(f"{what} after {now - self._since_s:.0f} s, continuing")
            return
        if event.attempt == 1:
            self._since_s, self._noted_s, self._lost = now, None, False
        lost = event.failure.connection_lost
        self._established = self._established or not lost
        if not self._established or (self._noted_s is not None and now - self._noted_s < NOTE_EVERY_S):
            return
        self._noted_s, self._lost = now, self._lost or lost
        what = "connection lost, reconnecting" if lost else f"{event.failure}; trying again"
        self._note(f"{what} ({now - self._since_s:.0f} s)")
