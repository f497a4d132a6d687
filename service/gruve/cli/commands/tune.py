"""`gruve tune`: works on ABC notation, without a server or a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gruve.cli.flags.parser import Parser, add_command
from gruve.cli.output.terminal import PICTURES, Failure, say_error

DESCRIPTION = """Work on tunes in ABC notation; needs no server.

`gruve tune check` finds the faults of the tunes in a file."""
CHECK_DESCRIPTION = """Find the faults of the tunes in a file, with line and column, and print what gruve leaves out.

It prints lines of the form FILE:LINE:COLUMN: LEVEL: MESSAGE. An error is a tune that cannot be read. A warning is a
fault, and says how gruve reads it. A note names what gruve always leaves out, such as chord symbols and lyrics. With
--fix the corrected tunes are printed, and these lines go to standard error; the file is not changed. The exit code is 1
after an error or a warning; with --fix, if a tune could not be read."""
EXAMPLES = """\
examples:
  gruve tune check session.abc
  gruve tune check session.abc --fix > right.abc
  gruve tune check - < tune.abc
"""
MAX_BYTES = 32 * 1024 * 1024


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the commands."""
    parser = add_command(commands, "tune", DESCRIPTION, EXAMPLES)
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    check = add_command(tasks, "check", CHECK_DESCRIPTION, EXAMPLES, run)
    check.add_argument("file", metavar="FILE", help="a book of tunes in ABC notation; - reads standard input")
    check.add_argument("--fix", action="store_true", help="print the corrected tunes")
    check.add_argument("--json", action="store_true", help="print a line of JSON for each finding")


def run(args: argparse.Namespace) -> int:
    """Checks a file."""
    from gruve.tune.check import check_book

    unread = wrong = 0
    tunes = 0
    for tune in check_book(_text(args.file)):
        for finding in tune.findings:
            place = {"file": args.file, "tune": tune.number, "line": finding.line, "column": finding.column}
            text = f"{args.file}:{finding}".translate(PICTURES)
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
