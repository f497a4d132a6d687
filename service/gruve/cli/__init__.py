"""The command line. The one room that reads the environment, prints, and imports late, so that a call starts fast.

Knows every other room. Each command is a file with `add`, which declares its flags, and `run`, which returns an exit
code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, 141 when nobody reads the output any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gruve.cli import bench, chat, demo, evaluate, generate, models, publish, serve, train, tune
from gruve.cli.flags import Parser, parser_options
from gruve.cli.terminal import Failure, say_error
from gruve.errors import GruveError

DESCRIPTION = "Serves recurrent language models over gRPC: exact, resumable, streamed token by token."
EXAMPLES = """\
first steps:
  gruve serve                                    serve the models in ./models on localhost:50051
  gruve models                                   see what it serves
  gruve generate shakespeare "ROMEO:"            stream a passage
  gruve generate folk --out tune.svg             stream a folk tune and draw it
  gruve chat shakespeare                         keep a session and go on line by line
  gruve demo                                     all of that by itself, on a server of its own

`gruve COMMAND --help` has every flag, with its unit, its default and its GRUVE_* variable; flags win over variables.
exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 the reader of the output is gone
"""
INTERRUPTED, PIPE_CLOSED = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; what went wrong is one line on standard error."""
    # gRPC's own log lines are no JSON, and tell a user nothing that the error does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    args = _parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (Failure, GruveError) as error:
        say_error(str(error))
        return getattr(error, "exit_code", 1)
    except OSError as error:
        say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    return code


def _parser() -> Parser:
    parser = Parser("gruve", **parser_options(DESCRIPTION, EXAMPLES))
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, generate, chat, models, train, evaluate, publish, bench, tune, demo):
        command.add(commands)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return f"gruve {version('gruve')}"
