"""`gruve sessions`: lists, shows, rewinds, forks, exports, imports and deletes the sessions of a server."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruve.cli.calls import connected
from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.credentials import add_address, client_options
from gruve.cli.flags.parser import Parser, add_command, add_flag, add_json, bounded, checked
from gruve.cli.flags.sampling import SEED
from gruve.cli.output.json_output import as_json, print_json
from gruve.cli.output.terminal import Failure, print_table, print_tabs, print_wide, say_note, standard_output

if TYPE_CHECKING:
    from gruve.v1.session_pb2 import Session

DESCRIPTION = """Manage the sessions of a server.

A session is a text that the server keeps, with the model's state after it and the record of prompts, seeds and
parameters. `gruve generate` and `gruve chat` continue one with --session ID."""
EXAMPLES = """\
examples:
  gruve sessions list                            the latest created first
  gruve sessions show ID --text                  the transcript
  gruve sessions rewind ID 120 --seed 7          remove the tokens from position 120 on; another seed from there
  gruve sessions fork ID --seed 1 --seed 2       two copies, each with its own seed
  gruve sessions export ID tune.session          pack a session into a file (the server needs GRUVE_EXPORT_KEY)
  gruve sessions import tune.session --address other:50051
  gruve sessions delete ID
"""
COLUMNS = ("id", "model", "position", "seed", "in use", "created", "updated", "expires")
TERMINAL_COLUMNS = (1, 2, 4, 6, 7)
"""The columns that fit into 80 characters; the id, which is long, stands below them."""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command and its actions."""
    parser = add_command(commands, "sessions", DESCRIPTION, EXAMPLES)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = _action(actions, "list", "List the sessions, the latest created first.", _list)
    add_flag(listing, "--model", str, None, "only sessions of this model", metavar="MODEL")
    add_json(listing)
    show = _action(actions, "show", "Show a session: its state, parameters and generations.", _show, session=True)
    show.add_argument("--text", action="store_true", help="print the text of the transcript and nothing else")
    add_json(show, "print one JSON object, token ids and text included")
    rewind = _action(actions, "rewind", "Remove the tokens of a session from a position on.", _rewind, session=True)
    rewind.add_argument(
        "position",
        metavar="POSITION",
        type=checked(bounded(int, 1, None)),
        help="the position of the first token to remove, from 1",
    )
    add_flag(
        rewind,
        "--seed",
        SEED,
        None,
        "the seed from there on; absent, the same as before",
        metavar="N",
    )
    add_json(rewind)
    fork = _action(actions, "fork", "Copy a session; print the ids of the copies, one a line.", _fork, session=True)
    fork.add_argument(
        "--seed",
        action="append",
        type=checked(SEED),
        metavar="N",
        help="make a copy with this seed; may be given more than once; absent, one copy, and the server draws its seed",
    )
    add_json(fork)
    export = _action(actions, "export", "Pack a session into a signed file. The session stays.", _export, session=True)
    export.add_argument("file", metavar="FILE", help="where to write it; - is standard output")
    importing = _action(actions, "import", "Create a session from an exported one; print its new id.", _import)
    importing.add_argument("file", metavar="FILE", help="the exported session; - is standard input")
    add_json(importing)
    delete = _action(actions, "delete", "Delete sessions for good.", _delete)
    delete.add_argument("sessions", metavar="ID", nargs="+", help="a session's id")


def _action(actions: Any, name: str, description: str, run: Any, *, session: bool = False) -> Parser:
    parser = add_command(actions, name, description, EXAMPLES, run)
    if session:
        parser.add_argument("session", metavar="ID", help="the session's id; `gruve sessions list` has them")
    add_address(parser)
    return parser


def _list(args: argparse.Namespace) -> int:
    with connected(args.address, client_options(args)) as client:
        sessions = list(client.list_sessions(args.model or ""))
    if args.json:
        print_json([as_json(session) for session in sessions])
    elif sys.stdout.isatty():
        rows = [(tuple(row[at] for at in TERMINAL_COLUMNS), row[0]) for row in map(_row, sessions)]
        print_wide(tuple(COLUMNS[at] for at in TERMINAL_COLUMNS), rows)
    else:
        print_tabs(COLUMNS, [_row(session) for session in sessions])
    return 0


def _show(args: argparse.Namespace) -> int:
    with connected(args.address, client_options(args)) as client:
        whole = client.get_session(args.session, transcript=args.text or args.json)
    if args.json:
        print_json(as_json(whole))
        return 0
    if args.text:
        out = standard_output()
        out.write(whole.text)
        out.end_line()
        return 0
    facts = as_json(whole.session)
    sampling = facts.pop("sampling") or {}
    if facts["idle_ttl"] is not None:
        facts["idle_ttl"] = duration(facts["idle_ttl"])
    lines = [(name.replace("_", " "), _plain(value)) for name, value in facts.items() if value is not None]
    lines += [
        (name.replace("_", " "), _plain(value)) for name, value in sampling.items() if not isinstance(value, dict)
    ]
    print_table(("field", "value"), lines)
    if whole.generations:
        print()
        print_table(
            ("generation", "from", "to", "max tokens", "finished"),
            [
                (g.id, str(g.start_position), str(g.next_position), str(g.max_tokens), _plain(g.finished))
                for g in whole.generations
            ],
        )
    return 0


def _rewind(args: argparse.Namespace) -> int:
    with connected(args.address, client_options(args)) as client:
        session = client.rewind_session(args.session, args.position, seed=args.seed)
    if args.json:
        print_json(as_json(session))
    else:
        say_note(f"session {session.id} is at position {session.position}")
    return 0


def _fork(args: argparse.Namespace) -> int:
    with connected(args.address, client_options(args)) as client:
        sessions = client.fork_session(args.session, args.seed or (None,))
    _print_created(sessions, as_list=True, json=args.json)
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.file == "-" and sys.stdout.isatty():
        raise Failure("FILE is '-'; an exported session is binary, and standard output is a terminal", USAGE)
    with connected(args.address, client_options(args)) as client:
        blob = client.export_session(args.session)
    if args.file == "-":
        sys.stdout.buffer.write(blob)
        sys.stdout.buffer.flush()
    else:
        path = Path(args.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
        say_note(f"wrote {args.file}, {len(blob):,} bytes")
    return 0


def _import(args: argparse.Namespace) -> int:
    blob = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    with connected(args.address, client_options(args)) as client:
        session = client.import_session(blob)
    _print_created([session], as_list=False, json=args.json)
    return 0


def _delete(args: argparse.Namespace) -> int:
    with connected(args.address, client_options(args)) as client:
        for session in args.sessions:
            client.delete_session(session)
            say_note(f"deleted {session}")
    return 0


def _print_created(sessions: Iterable[Session], *, as_list: bool, json: bool) -> None:
    if json:
        described = [as_json(session) for session in sessions]
        print_json(described if as_list else described[0])
        return
    for session in sessions:
        print(session.id)


def _row(session: Session) -> tuple[str, ...]:
    seed = str(session.sampling.seed) if session.HasField("sampling") else ""
    times = [_time(session, name) for name in ("create_time", "update_time", "expire_time")]
    return (session.id, session.model, str(session.position), seed, _plain(session.in_use), *times)


def _time(session: Session, name: str) -> str:
    """A time in UTC to the second, RFC 3339; empty if the server did not say."""
    if not session.HasField(name):
        return ""
    found = getattr(session, name).ToDatetime(tzinfo=datetime.UTC)
    return str(found.strftime("%Y-%m-%dT%H:%M:%SZ"))


def duration(seconds: float) -> str:
    """Seconds as people say them: `30 d`, `1 h 30 min`, `0.5 s`."""
    parts = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        count, seconds = divmod(seconds, length)
        parts += [f"{count:g} {unit}"] if count else []
    return " ".join([*parts, f"{seconds:g} s"] if seconds or not parts else parts)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
