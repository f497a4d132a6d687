"""The flags of `gruve serve` that say how connections are protected and who may call."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import add_flag, add_switch
from gruve.cli.output.terminal import Failure

if TYPE_CHECKING:
    from gruve.ports import TlsFiles
    from gruve.serve.callers.access import AccessConfig


def add_identity(group: argparse._ArgumentGroup) -> None:
    """Declares the flags."""
    add_flag(
        group,
        "--tls-cert",
        Path,
        None,
        "the server's certificate, then the intermediate ones, PEM; read again when it changes. The ports of gRPC and "
        "/metrics then require TLS",
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
        "the authorities of client certificates, PEM; both ports refuse connections without a certificate of theirs",
        variable="GRUVE_TLS_CLIENT_CA",
        metavar="FILE",
    )
    add_flag(
        group,
        "--keys",
        Path,
        None,
        "require an API key of this file, which `gruve keys` writes; read again when it changes",
        variable="GRUVE_KEYS",
        metavar="FILE",
    )
    add_flag(
        group,
        "--jwks",
        Path,
        None,
        "accept JSON Web Tokens, verified with the public keys of this JWKS file; read again when it changes",
        variable="GRUVE_JWKS",
        metavar="FILE",
    )
    add_flag(
        group,
        "--jwt-issuer",
        str,
        "",
        "the claim iss that tokens must have; needed with --jwks",
        variable="GRUVE_JWT_ISSUER",
        metavar="ISS",
    )
    add_flag(
        group,
        "--jwt-audience",
        str,
        "",
        "the claim aud that tokens must have; needed with --jwks",
        variable="GRUVE_JWT_AUDIENCE",
        metavar="AUD",
    )
    add_switch(
        group,
        "--insecure",
        "allow a --host that other machines reach without TLS or without authentication",
        variable="GRUVE_INSECURE",
    )


def access_config(args: argparse.Namespace) -> AccessConfig:
    """What the flags authenticate callers with."""
    from gruve.serve.callers.access import AccessConfig

    if args.jwks is not None and not (args.jwt_issuer and args.jwt_audience):
        raise Failure(
            "--jwks needs --jwt-issuer and --jwt-audience; without them it would accept tokens for others", USAGE
        )
    if args.jwks is None and (args.jwt_issuer or args.jwt_audience):
        raise Failure("--jwt-issuer or --jwt-audience is given without --jwks", USAGE)
    return AccessConfig(args.keys, args.jwks, args.jwt_issuer, args.jwt_audience)


def check_exposure(host: str, tls: TlsFiles | None, access: AccessConfig, *, insecure: bool) -> None:
    """Raises `Failure` if other machines would reach an unprotected server, unless that is asked for."""
    from gruve.serve.callers.exposure import unprotected

    lacks = unprotected(host, tls, access)
    if lacks and not insecure:
        raise Failure(
            f"--host is {host!r}, which other machines reach, and the server has no {' and no '.join(lacks)}; "
            "give --tls-cert, --tls-key and --keys or --jwks, or --insecure if the network protects it",
            USAGE,
        )
