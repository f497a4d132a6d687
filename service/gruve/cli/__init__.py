"""The command line. The one room that reads the environment, prints, and imports late, so that a call starts fast.

Knows every other room. Each command is a file of `commands` with `add`, which declares its flags, and `run`, which
returns an exit code of `exit_codes`. What several commands share is in `flags`, in `output` and here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gruve.cli.exit_codes import FAILED, INTERRUPTED, PIPE_CLOSED, TERMINATED, USAGE, table

if TYPE_CHECKING:
    from gruve.cli.flags.parser import Parser

DESCRIPTION = "Serves recurrent language models over gRPC: exact, resumable, streamed token by token."
EXAMPLES = f"""\
first steps:
  gruve serve                                    serve the models in ./models on localhost:50051
  gruve models                                   see what it serves
  gruve generate shakespeare "ROMEO:"            stream a passage
  gruve generate folk --out tune.svg             stream a folk tune and draw it
  gruve chat shakespeare                         write line by line, in a session that is kept
  gruve sessions list                            list the sessions that the server keeps
  gruve demo                                     a tune and a text, on a server that it starts and stops

`gruve COMMAND --help` has every flag, with its unit, its default and its GRUVE_* variable; flags win over variables.
NO_COLOR turns off all styling; output that is no terminal has none.

exit codes:
{table()}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. An error is a line on standard error, of the log if that has begun."""
    # gRPC's own log lines are no JSON, and tell a user nothing that the error does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if os.getpid() == 1:  # the first process of a container ignores SIGTERM until it handles it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    from argparse import Namespace

    from gruve.cli.extras import require_extra
    from gruve.cli.output.standard_streams import drop_unwritten, reopen_closed
    from gruve.cli.output.terminal import Failure, say_error
    from gruve.errors import GruveError, InvalidField

    reopen_closed()
    args = Namespace(say_error=say_error)  # a command that has begun a log sets another
    try:
        make_parser().parse_args(arguments, args)
        if args.extra:
            require_extra(args.extra, f"`{args.command}`")
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return PIPE_CLOSED
    except (Failure, GruveError) as error:
        args.say_error(str(error))
        return getattr(error, "exit_code", USAGE if isinstance(error, InvalidField) else FAILED)
    except OSError as error:
        where = error.filename or ("standard output" if drop_unwritten(sys.stdout) else "")
        args.say_error(f"{where}: {error.strerror}" if where else error.strerror or str(error))
        return FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            drop_unwritten(stream)
    return code


def make_parser() -> Parser:
    """The parser of the whole command line."""
    # Imported here, where `main` answers Ctrl-C: together they take the longest part of a start.
    from gruve.cli.commands import (
        bench,
        chat,
        completion,
        demo,
        doctor,
        evaluate,
        export_tokenizer,
        gateway,
        generate,
        keys,
        models,
        publish,
        serve,
        sessions,
        train,
        tune,
        verify,
    )
    from gruve.cli.flags.parser import Parser, parser_options

    parser = Parser("gruve", **parser_options(DESCRIPTION, EXAMPLES))
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    every = (
        serve,
        gateway,
        generate,
        verify,
        chat,
        models,
        sessions,
        keys,
        train,
        evaluate,
        publish,
        export_tokenizer,
        bench,
        tune,
        demo,
        doctor,
        completion,
    )
    for command in every:
        command.add(commands)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return f"gruve {version('gruve')}"
