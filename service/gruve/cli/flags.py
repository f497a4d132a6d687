"""How flags are declared: with their default and, where they have one, the environment variable that replaces it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from gruve.cli.terminal import say_error


class _FromEnvironment(str):
    """A default that somebody else wrote, so that a complaint can say where."""

    __slots__ = ("variable",)
    variable: str


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, and whose flags may stand anywhere: also between MODEL and PROMPT."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Takes positional arguments wherever they stand; argparse alone wants them side by side."""
        if self._subparsers is not None or self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and ends with the exit code of wrong usage."""
        told = message.removeprefix("argument ").replace(": is ", " is ", 1)
        say_error(f"{told}; see `{self.prog} --help`")
        self.exit(2)


def parser_options(description: str, examples: str) -> dict[str, Any]:
    """What every parser is made with."""
    return {
        "description": description,
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def add_command(
    commands: Any, name: str, description: str, examples: str, run: Callable[[argparse.Namespace], int]
) -> Parser:
    """A command's parser."""
    short = description.partition(".")[0]
    parser: Parser = commands.add_parser(
        name, help=short[0].lower() + short[1:], **parser_options(description, examples)
    )
    parser.set_defaults(run=run)
    return parser


def add_flag(
    parser: argparse._ActionsContainer,
    name: str,
    kind: Callable[[str], Any],
    default: Any,
    help: str,  # noqa: A002 - argparse's word
    *,
    variable: str = "",
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> None:
    """A flag with one value. `variable` names the environment variable that is looked at when the flag is absent."""
    told = [f"default {default}"] if default not in (None, "") else []
    if variable:
        told.append(f"or {variable}")
        if variable in os.environ:
            default = _FromEnvironment(os.environ[variable])
            default.variable = variable
    parser.add_argument(
        name,
        default=default,
        type=_named(kind, choices),
        metavar=metavar or ("|".join(choices) if choices else None),
        help=f"{help} ({'; '.join(told)})" if told else help,
    )


def add_address(parser: argparse._ActionsContainer) -> None:
    """The flag of every command that calls a server."""
    add_flag(
        parser,
        "--address",
        str,
        "localhost:50051",
        "the server as HOST:PORT, or several of them with commas between",
        variable="GRUVE_ADDRESS",
        metavar="HOST:PORT",
    )


def _named(kind: Callable[[str], Any], choices: tuple[str, ...] | None) -> Callable[[str], Any]:
    """`kind`, with complaints that quote the value, what is allowed, and the variable it came from."""

    def convert(text: str) -> Any:
        source = f" in {text.variable}" if isinstance(text, _FromEnvironment) else ""
        if choices and text not in choices:
            raise argparse.ArgumentTypeError(f"is {str(text)!r}{source}; must be one of {', '.join(choices)}")
        try:
            return kind(text)
        except ValueError as error:
            wanted = {"int": "a whole number", "float": "a number"}.get(kind.__name__, kind.__name__)
            raise argparse.ArgumentTypeError(f"is {str(text)!r}{source}; must be {wanted}") from error

    return convert
