"""How flags are declared: with their default and, where they have one, the environment variable that replaces it."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from gruve.cli.exit_codes import USAGE
from gruve.cli.output.terminal import Failure, say_error

LEAST_RATIO, LEAST_BEGUN = 0.7, 3
"""A name is near to a word if so much of both is alike, or if one begins with the other and has so many letters."""
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "fish": "(__fish_complete_path (commandline -ct))"}
"""The functions that complete a file name in each shell; `shtab.FILE` without the import."""


class _FromEnvironment(str):
    """A default from an environment variable, so that an error message can name the variable."""

    __slots__ = ("variable",)
    variable: str


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, and whose flags may stand anywhere: also between MODEL and PROMPT."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses positional arguments wherever they stand; argparse alone wants them side by side.

        What is left over is an error of the innermost command, which knows the flags that may have been meant.
        """
        if self._subparsers is not None or self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            found, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._meant(rest[0])}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits with the code of wrong usage."""
        found = message.removeprefix("argument ").replace(": is ", " is ", 1)
        choice = re.search(r"^(\w+): invalid choice: '([^']*)' \(choose from (.*)\)$", found)
        if choice:
            found = f"{choice[1]} is {choice[2]!r}; must be one of {choice[3].replace(chr(39), '')}"
            found += _did_you_mean(choice[2], choice[3].replace("'", "").split(", "))
        say_error(f"{found}; see `{self.prog} --help`")
        self.exit(USAGE)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the command; raises `OSError` if help that was printed cannot be written."""
        sys.stdout.flush()
        super().exit(status, message)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help; argparse's own hides that it cannot be written."""
        (file or sys.stderr).write(message)

    def _meant(self, argument: str) -> str:
        """A hint at the flag that was probably meant; empty if none is close."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        return _did_you_mean(argument.partition("=")[0], flags) if argument.startswith("-") else ""


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the name that is nearest to a word; empty if none is near, as an unrelated one would mislead."""
    given = word.lstrip("-")

    def nearness(name: str) -> float:
        bare = name.lstrip("-")
        begun = min(len(given), len(bare)) >= LEAST_BEGUN and (bare.startswith(given) or given.startswith(bare))
        ratio = difflib.SequenceMatcher(None, given, bare).ratio()
        return max(ratio, LEAST_RATIO) if begun else ratio

    nearest = max(known, key=nearness)
    return f"; did you mean {nearest}?" if nearness(nearest) >= LEAST_RATIO else ""


def parser_options(description: str, examples: str) -> dict[str, Any]:
    """The options that every parser is made with."""
    return {
        "description": description,
        "epilog": examples,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def add_command(
    commands: Any,
    name: str,
    description: str,
    examples: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    *,
    extra: str = "",
) -> Parser:
    """Adds a command and returns its parser. One whose second word is required has no `run` of its own.

    `extra` is what it needs, a key of `extras.MODULES`.
    """
    short = description.partition(".")[0]
    first = short[0] if short[1:2].isupper() else short[0].lower()  # HTTP stays as it is
    parser: Parser = commands.add_parser(name, help=first + short[1:], **parser_options(description, examples))
    if parser.prog.count(" ") > 1:  # an action of a command
        parser.epilog = _of_action(examples, parser.prog)
    parser.set_defaults(run=run, extra=extra, command=parser.prog)
    return parser


def _of_action(examples: str, action: str) -> str:
    """The examples of a command that are of one of its actions; empty if there are none."""
    lines = examples.splitlines(keepends=True)
    own = [line for line in lines if not line.startswith("  ") or line.startswith(f"  {action} ")]
    return "".join(own) if any(line.startswith("  ") for line in own) else ""


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
    """Adds a flag with one value.

    `variable` names the environment variable that is read if the flag is absent; one that is empty counts as absent.
    `kind` converts the text and raises `ValueError` or `argparse.ArgumentTypeError` with what is allowed.
    """
    notes = [f"default {default}"] if default not in (None, "") else []
    if variable:
        notes.append(f"or {variable}")
        default = _from_environment(variable, default)
    action = parser.add_argument(
        name,
        default=default,
        type=checked(kind, choices),
        metavar=metavar or ("|".join(choices) if choices else None),
        help=f"{help} ({'; '.join(notes)})" if notes else help,
    )
    if choices:
        action.choices = choices  # for the completion scripts; `checked` refuses others with a better message
    if kind is Path:
        action.complete = FILES  # type: ignore[attr-defined] # where shtab looks


def add_switch(parser: argparse._ActionsContainer, name: str, help: str, *, variable: str) -> None:  # noqa: A002 - as above
    """Adds a flag without a value. The variable switches it on with 1; other values than 0 and 1 are an error."""
    action = parser.add_argument(
        name,
        action="store_true",
        default=_from_environment(variable, False),
        help=f"{help} (or {variable}=1)",
    )
    action.type = checked(lambda text: text == "1", ("0", "1"))  # of the variable's text; the flag takes none


def _from_environment(variable: str, default: Any) -> Any:
    """The value of a variable, or the default where it is absent or empty."""
    if not (given := os.environ.get(variable)):
        return default
    value = _FromEnvironment(given)
    value.variable = variable
    return value


def add_json(parser: argparse._ActionsContainer, help: str = "print JSON instead") -> None:  # noqa: A002
    """Adds the flag of every command that lists or describes something."""
    parser.add_argument("--json", action="store_true", help=help)


def bounded(kind: type[int] | type[float], minimum: float, maximum: float | None) -> Callable[[str], Any]:
    """A converter to a number within bounds, both included; None is no upper bound. NaN is out of every bound."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not (minimum <= value and (maximum is None or value <= maximum)):
            raise argparse.ArgumentTypeError(
                f"must be {minimum} or more" if maximum is None else f"must be {minimum} to {maximum}"
            )
        return value

    convert.__name__ = kind.__name__
    return convert


PORT = bounded(int, 0, 65_535)
"""The kind of a port that is listened on; 0 is any free one."""


def checked(kind: Callable[[str], Any], choices: tuple[str, ...] | None = None) -> Callable[[str], Any]:
    """`kind` with error messages that quote the value, what is allowed, and the variable it came from."""

    def convert(text: str) -> Any:
        source = f" in {text.variable}" if isinstance(text, _FromEnvironment) else ""
        if choices and text not in choices:
            raise argparse.ArgumentTypeError(f"is {str(text)!r}{source}; must be one of {', '.join(choices)}")
        try:
            return kind(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"is {str(text)!r}{source}; {error}") from error
        except ValueError as error:
            wanted = {"int": "a whole number", "float": "a number"}.get(kind.__name__, kind.__name__)
            raise argparse.ArgumentTypeError(f"is {str(text)!r}{source}; must be {wanted}") from error

    return convert


def check_model_name(flag: str, given: Path | str, name: str) -> None:
    """Raises `Failure` if `name`, which the flag gives, is no name of a model, before the work that is for it."""
    from gruve.errors import ModelBroken
    from gruve.model.repository import check_name

    try:
        check_name(name)
    except ModelBroken as error:
        raise Failure(f"{flag} is {str(given)!r}, and names the model: {error}", USAGE) from None


def check_model_folder(flag: str, folder: Path) -> None:
    """Raises `Failure` if no model can be written to `folder`, which the flag gives, before the work that is for it."""
    check_model_name(flag, folder, folder.name)
    if folder.exists() and not folder.is_dir():
        raise Failure(f"{flag} is {str(folder)!r}, which is a file; a folder is needed", USAGE)
