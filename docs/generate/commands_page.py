"""The page of commands: every flag of every command, as argparse has it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator

STATE = "/state-home"
INTRODUCTION = """# Commands

Every command of `gruve` with its flags, generated from the command line itself. Flags win over `GRUVE_*` variables.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 `gruve verify` cannot check the receipt here, 130 Ctrl-C, 141 the reader
of the output is gone, 143 SIGTERM where the command could not end in order.

"""


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join(_command(parser()))


def parser() -> argparse.ArgumentParser:
    """The parser of `gruve` as it is for somebody who set no variable."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("GRUVE_")]:
        del os.environ[name]
    os.environ["XDG_STATE_HOME"] = STATE
    try:
        from gruve import cli

        return cli.make_parser()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below one, by name; none for a command that has no others."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command(parser: argparse.ArgumentParser, depth: int = 1) -> Iterator[str]:
    if depth > 1:
        yield f"{'#' * depth} {parser.prog} {{: #{parser.prog.replace(' ', '-')} }}\n"
        yield _prose(parser.description or "")
    yield from _flags(parser)
    if parser.epilog:
        yield f"```text\n{_plain(parser.epilog).strip()}\n```\n"
    for command in commands(parser).values():
        yield from _command(command, min(depth + 1, 4))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help is not argparse.SUPPRESS and a.dest != "help"]
        actions = [a for a in actions if not isinstance(a, argparse._SubParsersAction)]
        if not actions:
            continue
        yield f"| {group.title} | |\n|---|---|"
        for action in actions:
            yield f"| {_name(action)} | {_prose(_expand(parser, action)).strip().replace('|', '&#124;')} |"
        yield ""


def _expand(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _name(action: argparse.Action) -> str:
    value = action.metavar or (action.dest if not action.option_strings else action.dest.upper())
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    value = "" if action.nargs == 0 else " " + value.replace("|", "\\|")
    return " ".join(f"`{option}{value}`" for option in action.option_strings)


def _prose(text: str) -> str:
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*|GRUVE_[A-Z_]+)(?![`\w])", r"`\1`", _escape(_plain(text))) + "\n"


def _plain(text: str) -> str:
    return text.replace(STATE, "~/.local/state")


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "&#91;")
