"""The flags with which a command connects to a server, and what a client is made with from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import add_flag
from gruve.cli.output.terminal import Failure

if TYPE_CHECKING:
    from gruve.client import Tls

API_KEY = "GRUVE_API_KEY"


def add_address(parser: argparse._ActionsContainer) -> None:
    """Declare the flags of every command that calls a server."""
    add_connection(parser)
    add_flag(
        parser,
        "--api-key-file",
        Path,
        None,
        f"a file with the API key or token; {API_KEY} is the key itself",
        variable="GRUVE_API_KEY_FILE",
        metavar="FILE",
    )
    add_flag(
        parser,
        "--tenant",
        str,
        None,
        "use the sessions of this tenant; needs an API key with the role admin",
        variable="GRUVE_TENANT",
        metavar="NAME",
    )


def add_connection(parser: argparse._ActionsContainer) -> None:
    """Declare the flags that say where the server is and how its connection is encrypted."""
    add_flag(
        parser,
        "--address",
        str,
        "localhost:50051",
        "the server as HOST:PORT, or several of them with commas between",
        variable="GRUVE_ADDRESS",
        metavar="HOST:PORT",
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        help="connect with TLS; --ca and --cert imply it (or GRUVE_TLS=1)",
    )
    add_flag(
        parser,
        "--ca",
        Path,
        None,
        "the authorities of the server's certificate, PEM",
        variable="GRUVE_CA",
        metavar="FILE",
    )
    add_flag(
        parser,
        "--cert",
        Path,
        None,
        "a client certificate, PEM; needs --cert-key",
        variable="GRUVE_CERT",
        metavar="FILE",
    )
    add_flag(parser, "--cert-key", Path, None, "its private key, PEM", variable="GRUVE_CERT_KEY", metavar="FILE")


def client_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `Client` takes beside its addresses, from the flags of `add_address`. Raises `Failure` or `OSError`."""
    from gruve.client.credentials import SENDABLE, is_sendable
    from gruve.client.environment import api_key, metadata_of

    if args.tenant is not None and not is_sendable(args.tenant):
        raise Failure(f"--tenant is {args.tenant!r}; {SENDABLE}", USAGE)
    credentials = tls_credentials(args)
    try:
        key = api_key(args.api_key_file, os.environ.get(API_KEY, ""))
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    return {"credentials": credentials, "metadata": metadata_of(key, args.tenant)}


def tls_credentials(args: argparse.Namespace) -> Tls | None:
    """What the TLS flags of `add_connection` ask for; None without. Raises `Failure` or `OSError`."""
    from gruve.client import Tls
    from gruve.client.environment import wants_tls

    if (args.cert is None) != (args.cert_key is None):
        given, absent = ("--cert", "--cert-key") if args.cert_key is None else ("--cert-key", "--cert")
        raise Failure(f"{given} is given without {absent}; a client certificate needs both", USAGE)
    try:
        with_tls = args.tls or wants_tls(os.environ.get("GRUVE_TLS", "")) or args.ca or args.cert
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    credentials = Tls(args.ca, args.cert, args.cert_key) if with_tls else None
    if credentials is not None:
        credentials.channel_credentials()  # a file that cannot be read is an error now
    return credentials
