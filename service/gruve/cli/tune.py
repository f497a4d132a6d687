"""`gruve tune`: works on ABC notation, without a server or a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gruve.cli.flags import Parser, add_command, parser_options
from gruve.cli.terminal import PICTURES, Failure, say_error

DESCRIPTION = """Work on tunes in ABC notation; needs no server.

`gruve tune check` says what is wrong with a book of tunes."""
CHECK_DESCRIPTION = """Say what is wrong with the tunes of a file, each with line and column, and what is left out.

A line is FILE:LINE:COLUMN: LEVEL: what. An error is a tune that cannot be read; a warning is a fault, with what it is
taken for; a note is what a line of melody has no place for, and is left out by rule. With --fix the tunes are printed
written right, and what was found goes to standard error; the file stays as it is. Exit code 1 tells of an error or a
warning; with --fix, of a tune that could not be read."""
EXAMPLES = """\
examples:
  gruve tune check session.abc
  gruve tune check session.abc --fix > right.abc
  gruve tune check - < tune.abc
"""
MAX_BYTES = 32 * 1024 * 1024


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the commands."""
    parser = add_command(commands, "tune", DESCRIPTION, EXAMPLES, run)
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    check: Parser = tasks.add_parser(
        "check", help="say what is wrong with tunes, and fix it", **parser_options(CHECK_DESCRIPTION, EXAMPLES)
    )
    check.set_defaults(run=run)
    check.add_argument("file", metavar="FILE", help="a book of tunes in ABC notation; - reads standard input")
    check.add_argument("--fix", action="store_true", help="print the tunes written right")
    check.add_argument("--json", action="store_true", help="what was found as a line of JSON for each")


def run(args: argparse.Namespace) -> int:
    """Checks a file."""
    from gruve.tune.check import check_book

    unread = wrong = 0
    tunes = 0
    for tune in check_book(_text(args.file)):
        for finding in tune.findings:
            place = {"file": args.file, "tune": tune.number, "line": finding.line, "column": finding.column}
            text = f"{args.file}:{finding.line}:{finding.column}: {finding.level}: {finding.message}".translate(
                PICTURES
            )
            line = json.dumps({**place, "level": finding.level, "message": finding.message}) if args.json else text
            print(line, file=sys.stderr if args.fix else sys.stdout)
        if args.fix and tune.fixed:
            print("\n" * (tunes > 0) + tune.fixed, end="")
        tunes += tune.fixed is not None
        unread += tune.fixed is None
        wrong += not tune.is_right
    if args.fix and unread:
        say_error(f"{unread} of {tunes + unread} tunes could not be read, and are not written")
    return int(bool(unread if args.fix else wrong))


def _text(name: str) -> str:
    """The text of a file, in UTF-8 or else Latin-1."""
    if name == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Failure(f"{name} has more than {MAX_BYTES} bytes, which is the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
