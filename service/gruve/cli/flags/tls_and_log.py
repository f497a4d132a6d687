"""What the flags of `gruve serve` and `gruve gateway` have in common: the log level, and the certificates of a port."""

from __future__ import annotations

import argparse

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import add_flag
from gruve.cli.output.terminal import Failure
from gruve.ports import TlsFiles


def add_log_level(parser: argparse._ActionsContainer) -> None:
    """Declares `--log-level`."""
    add_flag(
        parser,
        "--log-level",
        str,
        "info",
        "the lowest level that is logged",
        variable="GRUVE_LOG_LEVEL",
        choices=("debug", "info", "warning", "error"),
    )


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """The certificates that the flags name; None without."""
    if (args.tls_cert is None) != (args.tls_key is None):
        given, absent = ("--tls-cert", "--tls-key") if args.tls_key is None else ("--tls-key", "--tls-cert")
        raise Failure(f"{given} is given without {absent}; a server needs both", USAGE)
    if args.tls_cert is None:
        if args.tls_client_ca is not None:
            raise Failure("--tls-client-ca is given without --tls-cert and --tls-key; a server needs them too", USAGE)
        return None
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca)
