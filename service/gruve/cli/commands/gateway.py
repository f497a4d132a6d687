"""`gruve gateway`: HTTP beside one or more servers, from flags and `GRUVE_*` variables."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.calls import split_address
from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.credentials import add_connection, tls_credentials
from gruve.cli.flags.parser import PORT, Parser, add_command, add_flag, add_switch, bounded
from gruve.cli.flags.sizes import body_size
from gruve.cli.flags.tls_and_log import add_log_level, tls_files
from gruve.cli.open_files import raise_open_files
from gruve.cli.output.logs import log_error, log_to_standard_error
from gruve.cli.output.standard_streams import announce
from gruve.cli.output.terminal import Failure

if TYPE_CHECKING:
    from gruve.gateway.config import GatewayConfig

DESCRIPTION = """Serve HTTP for gruve's servers: a page at /, OpenAI's completions, Connect and gRPC-Web.

It runs until Ctrl-C or SIGTERM, and calls the servers over gRPC.

When it is ready it prints one line of JSON on standard output, {"event": "serving", "port": ...}; logs are JSON
lines on standard error.

A gateway stores nothing. The servers keep the sessions and check the callers: the gateway passes the API key or token
of each caller on to them. Several gateways may use the same servers."""
EXAMPLES = """\
examples:
  gruve gateway                                          the server on localhost:50051, HTTP on localhost:8080
  gruve gateway --address a:50051,b:50051                two servers that serve the same models
  gruve gateway --address a:50051 --ca ca.pem            a server with TLS
  gruve gateway --host 0.0.0.0 --tls-cert http.pem --tls-key http.key     for other machines too
  curl localhost:8080/v1/completions -d '{"model": "folk", "prompt": "L:1/8\\nM:6/8\\n", "max_tokens": 60}'
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "gateway", DESCRIPTION, EXAMPLES, run, extra="http")
    servers = parser.add_argument_group("servers")
    add_connection(servers)
    _add_http(parser.add_argument_group("http"))
    parser.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="end when standard input is closed, for a program that starts a gateway",
    )
    add_log_level(parser)


def _add_http(group: argparse._ArgumentGroup) -> None:
    files = {
        "--tls-cert": (
            "the certificate of the HTTP port, then the intermediate ones, PEM; absent, no TLS",
            "GRUVE_HTTP_TLS_CERT",
        ),
        "--tls-key": ("its private key, PEM, without a password", "GRUVE_HTTP_TLS_KEY"),
        "--tls-client-ca": (
            "the authorities of client certificates, PEM; a connection without one is refused",
            "GRUVE_HTTP_TLS_CLIENT_CA",
        ),
    }
    add_flag(
        group,
        "--host",
        str,
        "127.0.0.1",
        "the address that HTTP listens on; 0.0.0.0 for other machines",
        variable="GRUVE_HTTP_HOST",
        metavar="HOST",
    )
    add_flag(
        group,
        "--port",
        PORT,
        8080,
        "the port of HTTP, 0 for any free one",
        variable="GRUVE_HTTP_PORT",
        metavar="N",
    )
    for name, (about, variable) in files.items():
        add_flag(group, name, Path, None, about, variable=variable, metavar="FILE")
    add_switch(
        group,
        "--insecure",
        "allow a --host that other machines reach without TLS",
        variable="GRUVE_INSECURE",
    )
    add_flag(
        group,
        "--allow-origin",
        str,
        "",
        "the origins whose web pages may call, such as https://example.com, with commas between; absent, the gateway's "
        "own page alone, opened on this machine",
        variable="GRUVE_ALLOW_ORIGIN",
        metavar="ORIGIN,...",
    )
    add_flag(
        group,
        "--max-connections",
        bounded(int, 1, 1_000_000),
        1_000,
        "maximum number of connections; requests on further ones are refused with 503",
        variable="GRUVE_HTTP_MAX_CONNECTIONS",
        metavar="N",
    )
    add_flag(
        group,
        "--head-timeout",
        bounded(float, 0.1, 3_600),
        10.0,
        "seconds that the head of a request may take to arrive",
        variable="GRUVE_HTTP_HEAD_TIMEOUT_S",
        metavar="S",
    )
    add_flag(
        group,
        "--max-body",
        body_size,
        "1MiB",
        "maximum size of a request's body, in bytes or with a unit; servers refuse more than 1MiB",
        variable="GRUVE_HTTP_MAX_BODY",
        metavar="SIZE",
    )
    add_flag(
        group,
        "--body-timeout",
        bounded(float, 0.1, 3_600),
        10.0,
        "seconds that the body of a request may take to arrive",
        variable="GRUVE_HTTP_BODY_TIMEOUT_S",
        metavar="S",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal."""
    import asyncio

    config = _config(args)
    log_to_standard_error(args.log_level)
    args.say_error = log_error
    raise_open_files(args.max_connections)
    from gruve.gateway.server import serve

    asyncio.run(serve(config, _tell, sys.stdin if args.end_with_stdin else None))
    return 0


def _config(args: argparse.Namespace) -> GatewayConfig:
    from gruve.gateway.config import GatewayConfig
    from gruve.ports import is_loopback

    servers = tuple(split_address(args.address))
    tls = tls_files(args)
    if tls is None and not args.insecure and not is_loopback(args.host):
        raise Failure(
            f"--host is {args.host!r}, which other machines reach, and the port has no TLS; "
            "give --tls-cert and --tls-key, or --insecure if the network protects it",
            USAGE,
        )
    return GatewayConfig(
        servers=servers,
        credentials=tls_credentials(args),
        host=args.host,
        port=args.port,
        tls=tls,
        allowed_origins=_origins(args.allow_origin),
        max_connections=args.max_connections,
        head_s=args.head_timeout,
        max_body_bytes=args.max_body,
        body_s=args.body_timeout,
    )


def _origins(given: str) -> tuple[str, ...]:
    """The origins in the value of --allow-origin. Raises `Failure` for one that no browser sends."""
    found = tuple(origin.strip() for origin in given.split(",") if origin.strip())
    for origin in found:
        if not re.fullmatch(r"null|[a-z][a-z0-9+.-]*://[^/\sA-Z?#]+", origin):
            why = "must be SCHEME://HOST or SCHEME://HOST:PORT in lower case, such as https://example.com"
            raise Failure(f"--allow-origin names {origin!r}; {why}", USAGE)
    return found


def _tell(port: int) -> None:
    announce(json.dumps({"event": "serving", "port": port}))
