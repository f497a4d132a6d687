"""`gruve serve`: the server, from flags and `GRUVE_*` variables."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.exit_codes import USAGE
from gruve.cli.extras import require_extra
from gruve.cli.flags.identity import access_config, check_exposure
from gruve.cli.flags.model_folder import BUILTIN, BUILTIN_NAME, USUAL, models_folder
from gruve.cli.flags.parser import Parser, add_command
from gruve.cli.flags.serve import add_flags, default_store
from gruve.cli.flags.tls_and_log import tls_files
from gruve.cli.http_beside import GatewayBeside
from gruve.cli.open_files import raise_open_files
from gruve.cli.output.logs import AccessLog, log_error, log_to_standard_error
from gruve.cli.output.standard_streams import announce
from gruve.cli.output.terminal import Failure

if TYPE_CHECKING:
    from gruve.receipt.signing import Sign
    from gruve.serve.calls.access_log import TraceCall
    from gruve.serve.server import ServeConfig, Serving

DESCRIPTION = """Serve models over gRPC until Ctrl-C or SIGTERM.

When it is ready it prints one line of JSON on standard output, {"event": "serving", "port": ..., "metrics_port": ...,
"models": [...]}, with "http_port" too if it serves HTTP; logs are JSON lines on standard error.

--store says where sessions are kept: in a file, for one server, or in Redis, for several servers, each of which can
serve any session. On SIGTERM the server ends running streams at once, and their clients resume them on another server,
or on this one after its restart. With --store memory, streams may continue for --drain seconds after SIGTERM; Ctrl-C
and a second signal end them at once."""
EXAMPLES = """\
examples:
  gruve serve                                    ./models, or the model that comes with gruve, on localhost:50051
  gruve serve --models models/folk               this model alone
  gruve serve --model-memory 2GiB                load models when they are asked for, at most 2 GiB of them
  gruve serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --keys keys.json     for other machines too
  gruve serve --http-port 8080                   HTTP too: the page at / and OpenAI's completions
  gruve serve --port 0 --metrics-port 0          any free ports; the line on standard output names them
  gruve serve --store redis://cache:6379/0       several servers share these sessions
  gruve serve --store sqlite:/var/lib/gruve/sessions.db --store-sync full

GRUVE_SESSION_KEY (at least 16 bytes of text) authenticates session ids; servers with the same key accept each other's
ids. Without it the server uses a key that it keeps in the store. With --store memory the key is random, and the ids are
invalid after a restart. GRUVE_EXPORT_KEY signs exported sessions; a server that imports them needs the same key.
Without it the session key signs them, unless that is random. No flag takes a key itself, because every user of a
machine can read flags. For the same reason give a password of Redis in GRUVE_STORE.
"""
log = logging.getLogger(__name__)

SESSION_KEY, EXPORT_KEY, LEAST_KEY_BYTES = "GRUVE_SESSION_KEY", "GRUVE_EXPORT_KEY", 16
USUAL_CONNECTIONS = 500
"""A server with fewer files than for so many warns. gRPC clients need one each, so many servers are far from it."""
STORED_TTL_S, MEMORY_TTL_S = 30 * 86_400.0, 3_600.0


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    add_flags(add_command(commands, "serve", DESCRIPTION, EXAMPLES, run, extra="serve"))


def run(args: argparse.Namespace) -> int:
    """Serves until a signal."""
    import asyncio

    config = _config(args)
    log_to_standard_error(args.log_level)
    args.say_error = log_error
    raise_open_files(USUAL_CONNECTIONS)
    if config.models == BUILTIN:
        found = {"missing": str(USUAL), "model": BUILTIN_NAME, "cure": "gruve models add, or --models"}
        log.info("there is no folder of models here; the model that comes with gruve is served", extra=found)
    from gruve.serve.server import serve

    beside = None if args.http_port is None else GatewayBeside(args.host, args.http_port, args.log_level)
    try:
        asyncio.run(serve(config, lambda serving: _tell(serving, beside)))
    finally:
        if beside is not None:
            beside.end()
    return 0


def _key(variable: str, file: Path | None = None) -> bytes | None:
    """A key from a file or a variable; None where there is neither."""
    key = os.environ.get(variable, "").encode()
    if file is not None:
        if key:
            raise Failure(f"--session-key-file and {variable} are both given; one is enough", USAGE)
        with _opening("--session-key-file", file):
            key = file.read_bytes().strip()
        variable = str(file)
        if not key:
            raise Failure(f"{variable} is empty; a key has at least {LEAST_KEY_BYTES} bytes", USAGE)
    if key and len(key) < LEAST_KEY_BYTES:
        raise Failure(f"{variable} has {len(key)} bytes; at least {LEAST_KEY_BYTES} are needed", USAGE)
    return key or None


def _signer(path: Path | None) -> Sign | None:
    """The signing function of --sign-receipts; None without it."""
    if path is None:
        return None
    from gruve.receipt.signing import read_private_key

    with _opening("--sign-receipts", path):
        return read_private_key(path)


def _access_log(path: str | None, form: str) -> AccessLog | None:
    """What writes --access-log; None without it."""
    if not path:
        return None
    with _opening("--access-log", path):
        return AccessLog(path, form)


@contextlib.contextmanager
def _opening(flag: str, path: Path | str) -> Iterator[None]:
    """Raises `Failure` with the flag whose file cannot be opened."""
    try:
        yield
    except OSError as error:
        raise Failure(f"{flag} is {str(path)!r}, which cannot be opened: {error.strerror}") from error


def _tracer(wanted: bool) -> TraceCall | None:
    """What traces calls with --otel; None without it. Raises `Failure` if the process has no SDK set up."""
    if not wanted:
        return None
    require_extra("otel", "--otel")
    from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

    from gruve.serve.calls.tracing import Tracing

    if isinstance(get_tracer_provider(), ProxyTracerProvider):
        raise Failure(
            "--otel is given, and no OpenTelemetry SDK is set up that takes the traces; "
            "start the server as `opentelemetry-instrument gruve serve --otel`",
            USAGE,
        )
    return Tracing().begin


def _config(args: argparse.Namespace) -> ServeConfig:
    session_key, export_key = _key(SESSION_KEY, args.session_key_file), _key(EXPORT_KEY)
    models = models_folder(args.models)
    tls, access = tls_files(args), access_config(args)
    check_exposure(args.host, tls, access, insecure=args.insecure)
    if args.http_port is not None:
        require_extra("http", "--http-port")
        if tls is not None:
            why = "is given with --tls-cert; start `gruve gateway` with the certificates of both its sides instead"
            raise Failure(f"--http-port {why}", USAGE)
    store = default_store() if args.store == "sqlite" else args.store
    ttl_s = args.session_ttl
    if ttl_s is None:
        ttl_s = MEMORY_TTL_S if store == "memory" else STORED_TTL_S
    from gruve.decode.choose import DecodeConfig
    from gruve.engine.engine import EngineConfig
    from gruve.serve.callers.identity import Limits
    from gruve.serve.server import ServeConfig
    from gruve.sessions.table import SessionsConfig

    return ServeConfig(
        models=models,
        host=args.host,
        port=args.port,
        metrics_host=args.metrics_host,
        metrics_port=args.metrics_port,
        tls=tls,
        access=access,
        drain_s=args.drain,
        watch_s=args.watch,
        model_memory_bytes=args.model_memory,
        session_key=session_key,
        export_key=export_key,
        log_call=_access_log(args.access_log, args.access_log_format),
        trace_call=_tracer(args.otel),
        sign_receipt=_signer(args.sign_receipts),
        store=store,
        store_synchronous=args.store_sync.upper(),
        decode=DecodeConfig(
            device=args.device,
            slots=args.slots,
            threads=args.threads,
            native=args.native == "1",
            isa=args.isa,
            arithmetic=args.arithmetic,
            cuda=args.cuda,
        ),
        total_limits=Limits(**args.total_limits),
        tenant_limits=Limits(**args.tenant_limits),
        engine=EngineConfig(max_waiting=args.max_waiting, max_call_ms=args.max_call_ms),
        sessions=SessionsConfig(idle_ttl_s=ttl_s, budget_bytes=args.session_memory),
    )


async def _tell(serving: Serving, beside: GatewayBeside | None) -> None:
    http = {} if beside is None else {"http_port": await _start(beside, serving.port)}
    line = {
        "event": "serving",
        "port": serving.port,
        "metrics_port": serving.metrics_port,
        **http,
        "models": list(serving.models),
    }
    announce(json.dumps(line))


async def _start(beside: GatewayBeside, grpc_port: int) -> int:
    """Starts the gateway on a thread: the server answers already, and its event loop would stand still."""
    import asyncio

    try:
        return await asyncio.to_thread(beside.start, grpc_port)
    except asyncio.CancelledError:  # the server is to end; the thread waits until the gateway does
        beside.end()
        raise
