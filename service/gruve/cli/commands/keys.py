"""`gruve keys`: makes, lists and revokes the API keys of a server."""

from __future__ import annotations

import argparse
import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import Parser, add_command, add_flag, add_json, bounded
from gruve.cli.output.json_output import print_json
from gruve.cli.output.terminal import Failure, print_table

if TYPE_CHECKING:
    from gruve.serve.callers.api_keys import ApiKey

DESCRIPTION = """Make, list and revoke the API keys of a server.

The keys are in a file that `gruve serve --keys FILE` reads, and reads again when it changes: a quarter of a second
later a new key works and a revoked one is refused. The file has only hashes, so a key is printed once, when it is
made."""
EXAMPLES = """\
examples:
  gruve keys add ann --keys keys.json                                a key of the tenant ann
  gruve keys add night-batch --tenant ann --weight 0.2 --streams 50 --expires 90d
  gruve keys add ops --role admin                                    with GRUVE_KEYS=keys.json
  gruve keys list
  gruve keys revoke night-batch

`gruve generate` and the other commands that call a server take a key from GRUVE_API_KEY or --api-key-file.
"""
LIMITS = {
    "streams": "streams that run or wait",
    "waiting": "requests that wait for a slot",
    "sessions": "sessions, in memory and in the store",
    "stored_bytes": "bytes of sessions in the store",
    "tokens_per_minute": "tokens a minute",
    "requests_per_minute": "requests a minute",
}
COLUMNS = ("name", "key", "tenant", "role", "weight", "limits", "created", "expires")
UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "keys", DESCRIPTION, EXAMPLES, extra="serve")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    making = add_command(actions, "add", "Make a key and print it, once.", EXAMPLES, run_add, extra="serve")
    making.add_argument("name", metavar="NAME", help="the key's name, for the list and for logs")
    add_flag(making, "--tenant", str, None, "who uses it and owns its sessions; absent, the key's name", metavar="NAME")
    add_flag(
        making,
        "--role",
        str,
        "use",
        "use generates, with the sessions of its tenant; admin also reloads models, and uses all tenants' sessions",
        choices=("use", "admin"),
    )
    weight = bounded(float, 0.001, 1_000.0)
    add_flag(
        making,
        "--weight",
        weight,
        1.0,
        "the tenant's share of a busy server beside the others', 0.001 to 1000",
        metavar="N",
    )
    add_flag(
        making,
        "--expires",
        _expiry,
        None,
        "when it ends, such as 12h, 90d or 2027-01-31; absent, never",
        metavar="WHEN",
    )
    limits = making.add_argument_group("limits of the tenant; absent, those of the server")
    for name, meaning in LIMITS.items():
        least = 1 if name == "waiting" else 0
        add_flag(limits, f"--{name.replace('_', '-')}", bounded(int, least, None), None, meaning, metavar="N")
    _add_file(making)
    listing = add_command(
        actions,
        "list",
        "List the keys of the file, by name; the keys themselves are not in it.",
        EXAMPLES,
        run_list,
        extra="serve",
    )
    _add_file(listing)
    add_json(listing)
    revoking = add_command(
        actions,
        "revoke",
        "Revoke a key. Its running streams continue to their ends.",
        EXAMPLES,
        run_revoke,
        extra="serve",
    )
    revoking.add_argument("name", metavar="NAME", help="the key's name; `gruve keys list` has them")
    _add_file(revoking)


def _add_file(parser: argparse._ActionsContainer) -> None:
    add_flag(parser, "--keys", Path, None, "the file of keys", variable="GRUVE_KEYS", metavar="FILE")


def run_add(args: argparse.Namespace) -> int:
    """Prints the new key on standard output. A key that cannot be printed, which nobody has, is removed again."""
    from gruve.serve.callers.api_keys import add_key, revoke_key
    from gruve.serve.callers.identity import Limits, Role

    limits = Limits(**{name: getattr(args, name) for name in LIMITS})
    file = _file(args)
    key = add_key(
        file,
        args.name,
        args.name if args.tenant is None else args.tenant,
        role=Role[args.role.upper()],
        weight=args.weight,
        limits=limits,
        expires=args.expires,
    )
    try:
        print(key, flush=True)
    except OSError as error:
        revoke_key(file, args.name)
        why = f"cannot be printed ({error.strerror}) and is removed from {str(file)!r} again"
        raise Failure(f"the key {args.name!r} {why}") from error
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Lists the keys of the file."""
    from gruve.serve.callers.api_keys import read_keys

    keys = read_keys(_file(args))
    if args.json:
        print_json([_described(key) for key in keys])
        return 0
    rows = []
    for key in map(_described, keys):
        limits = " ".join(f"{name}={value}" for name, value in key["limits"].items())
        expires = f"{key['expires'] or 'never'}{' (expired)' if key['expired'] else ''}"
        rows.append((*(str(key[column]) for column in COLUMNS[:5]), limits or "-", key["created"], expires))
    print_table(COLUMNS, rows)
    return 0


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "key": f"{key.shown}...",
        "tenant": key.tenant,
        "role": key.role.name.lower(),
        "weight": key.weight,
        "limits": {name: value for name in LIMITS if (value := getattr(key.limits, name)) is not None},
        "created": key.created,
        "expires": key.expires,
        "expired": key.expires_s <= datetime.datetime.now(datetime.UTC).timestamp(),
    }


def run_revoke(args: argparse.Namespace) -> int:
    """Removes a key from the file."""
    from gruve.serve.callers.api_keys import revoke_key

    file = _file(args)
    if not revoke_key(file, args.name):
        raise Failure(f"{str(file)!r} has no key named {args.name!r}")
    return 0


def _file(args: argparse.Namespace) -> Path:
    if args.keys is None:
        raise Failure("no file of keys is named; give --keys FILE or set GRUVE_KEYS", USAGE)
    file: Path = args.keys
    return file


def _expiry(text: str) -> str:
    """A date and time in UTC, from a date or from a time to go."""
    now = datetime.datetime.now(datetime.UTC)
    if found := re.fullmatch(r"(\d{1,6})([mhd])", text):
        when = now + datetime.timedelta(seconds=int(found[1]) * UNITS_S[found[2]])
    else:
        try:
            when = datetime.datetime.fromisoformat(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError("must be minutes, hours or days, such as 90d, or a date") from error
        when = when.replace(tzinfo=when.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    if when <= now:
        raise argparse.ArgumentTypeError(f"must be in the future; it is {now.isoformat(timespec='seconds')}")
    return when.isoformat(timespec="seconds")
