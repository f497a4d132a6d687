"""`gruve chat`: a session in the terminal, line by line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gruve.cli.calls import (
    ReconnectNotes,
    check_session_model,
    connected,
    default_temperature,
    explain,
    failure_of,
    find_model,
)
from gruve.cli.flags.credentials import add_address, client_options
from gruve.cli.flags.parser import Parser, add_command, checked
from gruve.cli.flags.sampling import (
    MAX_TOKENS,
    PACE,
    SEED,
    TEMPERATURE,
    add_numerics_change,
    add_sampling,
    sampling_options,
)
from gruve.cli.interrupts import interrupt_cancels
from gruve.cli.output.terminal import TextOut, say_error, say_note, standard_output

if TYPE_CHECKING:
    from gruve.client import Client, GenerateOptions

HELP = """\
  TEXT            the model reads the line and writes on from there; after an empty line it just writes on
  /temperature X  temperature from here on; 0 always takes the most probable token
  /seed N         seed from here on
  /max-tokens N   maximum number of tokens after each line
  /max-tokens-per-second N
                  maximum number of tokens per second
  /new            begin a new session; the old one is kept
  /help, /quit    print this text; end the chat (also Ctrl-D). Ctrl-C stops what is written"""
DESCRIPTION = """Write with a model line by line, in a session that the server keeps.

The model does not answer questions; it continues a text. It reads each line that you type, and writes on from there.
Ctrl-C stops what it writes, and Ctrl-D ends the chat. A note at the end names the session's id, and --session continues
it."""
EXAMPLES = f"""\
lines:
{HELP}

examples:
  gruve chat shakespeare --max-tokens 300 --max-tokens-per-second 60
  gruve chat shakespeare --session ID            continue an earlier chat
  printf 'ROMEO:\\n\\n' | gruve chat shakespeare --seed 1 > scene.txt
"""
PROMPT = "> "
USUAL_MAX_TOKENS = 200
OPTIONS: dict[str, Callable[[str], Any]] = {
    "temperature": TEMPERATURE,
    "seed": SEED,
    "max-tokens": MAX_TOKENS,
    "max-tokens-per-second": PACE,
}
"""The flags that a line sets too."""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "chat", DESCRIPTION, EXAMPLES, run)
    parser.add_argument("model", metavar="MODEL", help="the model's name; `gruve models` lists them")
    add_address(parser)
    add_sampling(parser, USUAL_MAX_TOKENS)
    parser.add_argument("--session", metavar="ID", help="continue this session; absent, begin a new one")
    add_numerics_change(parser)


def run(args: argparse.Namespace) -> int:
    """Reads lines until there are no more."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives `input` a history and editing
    reconnects = ReconnectNotes(say_note)
    with connected(args.address, client_options(args), on_reconnect=reconnects) as client:
        chat = Chat(client, args, standard_output())
        reconnects.established()
        if sys.stdin.isatty():
            say_note(f"{args.model} at {args.address}; /help says what there is")
        try:
            while chat.turn():
                pass
        finally:
            chat.end()
    return 0


class Chat:
    """A session, and the options of the next answer."""

    def __init__(self, client: Client, args: argparse.Namespace, out: TextOut) -> None:
        self._client = client
        self._args = args
        self._out = out
        self._options: GenerateOptions = {
            **sampling_options(args),
            "allow_numerics_change": args.allow_numerics_change,
        }
        self._unused = False
        self._session = args.session or ""
        if self._session:
            check_session_model(client, self._session, args.model)
        else:
            self._begin()

    def turn(self) -> bool:
        """Reads a line and answers it; returns False when there is none."""
        try:
            line = input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            self._out.end_line()
            return False
        if not line.startswith("/"):
            self._answer(line)
            return True
        name, _, value = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/new":
            self.end()
            self._begin()
            say_note("a new session")
        elif name.removeprefix("/") in OPTIONS:
            self._set(name.removeprefix("/"), value)
        else:
            if name != "/help":
                say_error(f"there is no line {name}; there are")
            say_note(HELP)
        return True

    def end(self) -> None:
        """Note the id of the session, which is kept. One that this chat created and never used is deleted."""
        session, self._session = self._session, ""
        if session and self._unused:
            self._client.delete_session(session)
        elif session:
            say_note(f"gruve chat {self._args.model} --session {session} goes on from here")

    def _begin(self) -> None:
        self._session = self._client.create_session(self._args.model).id
        if self._options.get("temperature") is None:
            self._options["temperature"] = default_temperature(find_model(self._client, self._args.model))
        self._unused = True

    def _set(self, name: str, value: str) -> None:
        """Sets an option; a value that is refused leaves it as it was."""
        try:
            self._options[name.replace("-", "_")] = checked(OPTIONS[name])(value)  # type: ignore[literal-required]
        except argparse.ArgumentTypeError as error:
            say_error(f"/{name} {error}; it stays as it was")

    def _answer(self, line: str) -> None:
        """Streams what follows the line; a refusal or Ctrl-C ends the answer, not the session."""
        from gruve.client import CallFailed

        prompt = f"{line}\n" if line else None
        self._unused = False
        stream = self._client.generate(prompt, session_id=self._session, **self._options)
        try:
            with interrupt_cancels(stream), stream:
                for chunk in stream:
                    self._out.write(chunk.text)
        except KeyboardInterrupt:
            self._out.end_line()
            say_note("stopped; an empty line goes on")
        except CallFailed as error:
            self._out.end_line()
            if error.reason in ("SESSION_EXPIRED", "SESSION_UNKNOWN") or error.connection_lost:
                if not error.connection_lost:
                    self._session = ""  # there is nothing left to go on with
                raise failure_of(error, self._args.address) from error
            say_error(explain(error, self._args.address))
        # A seed is for one answer; the session goes on drawing from it.
        self._options["seed"] = None
        self._out.end_line()
