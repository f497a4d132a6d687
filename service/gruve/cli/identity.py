"""The flags of `gruve serve` that say how connections are protected and who may call."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags import add_flag
from gruve.cli.terminal import Failure

if TYPE_CHECKING:
    from gruve.serve.tls import TlsFiles


def add_identity(group: argparse._ArgumentGroup) -> None:
    """Declares the flags."""
    add_flag(
        group,
        "--tls-cert",
        Path,
        None,
        "the server's certificate and intermediate ones, PEM, read again on change; both ports then take TLS alone",
        variable="GRUVE_TLS_CERT",
        metavar="FILE",
    )
    add_flag(
        group,
        "--tls-key",
        Path,
        None,
        "the certificate's private key, PEM, without a password",
        variable="GRUVE_TLS_KEY",
        metavar="FILE",
    )
    add_flag(
        group,
        "--tls-client-ca",
        Path,
        None,
        "the authorities of client certificates, PEM; a connection without such a certificate is refused on both ports",
        variable="GRUVE_TLS_CLIENT_CA",
        metavar="FILE",
    )


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """The certificates that the flags name; None without."""
    from gruve.serve.tls import TlsFiles

    if (args.tls_cert is None) != (args.tls_key is None):
        given, absent = ("--tls-cert", "--tls-key") if args.tls_key is None else ("--tls-key", "--tls-cert")
        raise Failure(f"{given} is given without {absent}; a server needs both", USAGE)
    if args.tls_cert is None:
        if args.tls_client_ca is not None:
            raise Failure("--tls-client-ca is given without --tls-cert and --tls-key; a server needs them too", USAGE)
        return None
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca)
