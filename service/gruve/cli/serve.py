"""`gruve serve`: the server, from flags and `GRUVE_*` variables."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.flags import Parser, add_command, add_flag
from gruve.cli.identity import access_config, add_identity, check_exposure, tls_files
from gruve.cli.logs import AccessLog, log_to_standard_error
from gruve.cli.terminal import Failure

if TYPE_CHECKING:
    from gruve.receipt.signing import Sign
    from gruve.serve.server import ServeConfig, Serving

DESCRIPTION = """Serve models over gRPC until Ctrl-C or SIGTERM.

When it is ready it prints one line of JSON on standard output, {"event": "serving", "port": ..., "metrics_port": ...,
"models": [...]}; logs are JSON lines on standard error.

Sessions are kept in --store, so that they outlive the server: in a file of one server, or in a Redis of several,
any of which then serves any session. SIGTERM hands running streams over at once, to whoever their clients turn to next;
with --store memory it lets them go on for the time of --drain first. So does Ctrl-C or a second signal, without that
time."""
EXAMPLES = """\
examples:
  gruve serve                                    ./models on localhost:50051, metrics on localhost:9464
  gruve serve --models models/folk               this model alone
  gruve serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --keys keys.json     for other machines too
  gruve serve --port 0 --metrics-port 0          any free ports, as the line on standard output tells
  gruve serve --store redis://cache:6379/0       sessions that any server with the same --store can go on with
  gruve serve --store sqlite:/var/lib/gruve/sessions.db --store-sync full

GRUVE_SESSION_KEY authenticates session ids, at least 16 bytes of text; servers that share it accept each other's ids.
Absent, the store has one, or without a store one is drawn, and ids end with the server. GRUVE_EXPORT_KEY signs exported
sessions, and is the same where they are imported; absent, the session key does, unless it was drawn. They are no flags
because every user of a machine can read flags; a password of Redis is best given by GRUVE_STORE for the same reason.
"""
MIB = 1 << 20
SESSION_KEY, EXPORT_KEY, LEAST_KEY_BYTES = "GRUVE_SESSION_KEY", "GRUVE_EXPORT_KEY", 16
STORED_TTL_S, MEMORY_TTL_S = 30 * 86_400.0, 3_600.0
BOUNDS: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "metrics_port": (0, 65_535),
    "threads": (1, 256),
    "slots": (1, 65_536),
    "max_waiting": (0, 1_048_576),
    "max_call_ms": (0.1, 1_000),
    "drain": (0, 86_400),
    "session_ttl": (1, 315_360_000),
    "session_memory": (0, 1_048_576),
    "watch": (0.1, 86_400),
}
"""The minimum and maximum of each flag that takes a number."""


LIMITS = ("streams", "waiting", "tokens-per-minute", "requests-per-minute")
"""The limits that `--tenant-limits` and `--total-limits` know."""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "serve", DESCRIPTION, EXAMPLES, run, extra="serve")
    where = parser.add_argument_group("where")
    add_flag(
        where,
        "--models",
        Path,
        "models",
        "the folder of models, or of one model",
        variable="GRUVE_MODELS",
        metavar="DIR",
    )
    add_flag(
        where,
        "--watch",
        float,
        None,
        "seconds between two looks at the models' files; what has changed and come to rest is reloaded; absent, never",
        variable="GRUVE_WATCH_S",
        metavar="S",
    )
    add_flag(where, "--host", str, "127.0.0.1", "where gRPC listens", variable="GRUVE_HOST", metavar="HOST")
    add_flag(where, "--port", int, 50051, "gRPC's port, 0 for any free one", variable="GRUVE_PORT", metavar="N")
    add_flag(
        where,
        "--metrics-host",
        str,
        "127.0.0.1",
        "where /metrics listens",
        variable="GRUVE_METRICS_HOST",
        metavar="HOST",
    )
    add_flag(
        where,
        "--metrics-port",
        int,
        9464,
        "the port of /metrics, 0 for any free one",
        variable="GRUVE_METRICS_PORT",
        metavar="N",
    )
    add_identity(parser.add_argument_group("identity"))
    _add_work(parser.add_argument_group("work"))
    _add_sessions(parser.add_argument_group("sessions"))
    add_flag(
        parser,
        "--access-log",
        str,
        None,
        "write a line for each call to this file; - is standard output",
        variable="GRUVE_ACCESS_LOG",
        metavar="FILE|-",
    )
    add_flag(
        parser,
        "--access-log-format",
        str,
        "json",
        "how these lines are written",
        variable="GRUVE_ACCESS_LOG_FORMAT",
        choices=("json", "text"),
    )
    add_flag(
        parser,
        "--log-level",
        str,
        "info",
        "the least that is logged",
        variable="GRUVE_LOG_LEVEL",
        choices=("debug", "info", "warning", "error"),
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--device",
        str,
        "auto",
        "what computes; auto takes a GPU where there is one",
        variable="GRUVE_DEVICE",
        choices=("auto", "cpu", "cuda"),
    )
    add_flag(
        group,
        "--threads",
        int,
        None,
        "CPU threads that decode, 1 to 256; absent, as many as the process or its container may use cores, and 1 "
        "without native kernels",
        variable="GRUVE_THREADS",
        metavar="N",
    )
    add_flag(
        group,
        "--native",
        str,
        "1",
        "0 decodes on a CPU with torch instead of the native kernels, slower",
        variable="GRUVE_NATIVE",
        choices=("0", "1"),
    )
    add_flag(
        group,
        "--isa",
        str,
        None,
        "instructions that the native kernels use, zen4 for AVX-512 with VNNI on a Zen 4; absent, the CPU's fastest",
        variable="GRUVE_ISA",
        choices=("avx512vnni", "avx512", "zen4", "avxvnni", "avx2", "portable"),
    )
    add_flag(
        group,
        "--cuda",
        str,
        "auto",
        "how a GPU decodes; auto takes the first of the others that works",
        variable="GRUVE_CUDA",
        choices=("auto", "triton", "graph", "eager"),
    )
    add_flag(
        group,
        "--arithmetic",
        str,
        "float32",
        "what states are multiplied in; int8 is faster, rounds more, and makes the same tokens with every backend",
        variable="GRUVE_ARITHMETIC",
        choices=("float32", "int8"),
    )
    add_flag(
        group,
        "--slots",
        int,
        1024,
        "sequences a model decodes at once, 1 to 65536",
        variable="GRUVE_SLOTS",
        metavar="N",
    )
    add_flag(
        group,
        "--max-waiting",
        int,
        1024,
        "sequences that may wait for a slot; one more is refused",
        variable="GRUVE_MAX_WAITING",
        metavar="N",
    )
    add_flag(
        group,
        "--tenant-limits",
        limits,
        "",
        "what each tenant may use unless its key says otherwise, such as streams=64,tokens-per-minute=600000",
        variable="GRUVE_TENANT_LIMITS",
        metavar="NAME=N,...",
    )
    add_flag(
        group,
        "--total-limits",
        limits,
        "",
        "what all tenants together may use; names are streams, waiting, tokens-per-minute, requests-per-minute",
        variable="GRUVE_TOTAL_LIMITS",
        metavar="NAME=N,...",
    )
    add_flag(
        group,
        "--max-call-ms",
        float,
        10.0,
        "milliseconds that a decoding call aims at",
        variable="GRUVE_MAX_CALL_MS",
        metavar="MS",
    )
    add_flag(
        group,
        "--drain",
        float,
        30.0,
        "seconds that streams may go on after SIGTERM where nothing is stored",
        variable="GRUVE_DRAIN_S",
        metavar="S",
    )


def _add_sessions(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--store",
        str,
        default_store(),
        "what keeps sessions: memory, sqlite, sqlite:PATH, or redis://[USER:PASSWORD@]HOST[:PORT][/DB]",
        variable="GRUVE_STORE",
        metavar="STORE",
    )
    add_flag(
        group,
        "--store-sync",
        str,
        "normal",
        "how SQLite writes; full survives a power cut too, for a disk flush a write",
        variable="GRUVE_STORE_SYNC",
        choices=("normal", "full"),
    )
    add_flag(
        group,
        "--session-key-file",
        Path,
        None,
        "a file with the key that authenticates session ids",
        variable="GRUVE_SESSION_KEY_FILE",
        metavar="FILE",
    )
    add_flag(
        group,
        "--sign-receipts",
        Path,
        None,
        "sign receipts with the Ed25519 key of this file: PEM, readable by its owner and group alone",
        variable="GRUVE_SIGN_RECEIPTS",
        metavar="KEYFILE",
    )
    add_flag(
        group,
        "--session-ttl",
        float,
        None,
        "seconds that a session may lie idle; absent, 30 days where it is stored, 1 hour in memory",
        variable="GRUVE_SESSION_TTL_S",
        metavar="S",
    )
    add_flag(
        group,
        "--session-memory",
        float,
        64.0,
        "MiB for idle sessions; beyond, the least recently used leave for the store or, in memory, expire",
        variable="GRUVE_SESSION_MEMORY_MIB",
        metavar="MIB",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal."""
    import asyncio

    config = _config(args)
    log_to_standard_error(args.log_level)
    from gruve.serve.server import serve

    asyncio.run(serve(config, _tell))
    return 0


def default_store() -> str:
    """The store without --store: a file in the user's state folder, by the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return f"sqlite:{folder / 'gruve' / 'sessions.db'}"


def _key(variable: str, file: Path | None = None) -> bytes | None:
    """A key from a file or a variable; None where there is neither."""
    key = os.environ.get(variable, "").encode()
    if file is not None:
        if key:
            raise Failure(f"--session-key-file and {variable} are both given; one is enough", exit_code=2)
        key = file.read_bytes().strip()
        variable = str(file)
        if not key:
            raise Failure(f"{variable} is empty; a key has at least {LEAST_KEY_BYTES} bytes", exit_code=2)
    if key and len(key) < LEAST_KEY_BYTES:
        raise Failure(f"{variable} has {len(key)} bytes; at least {LEAST_KEY_BYTES} are needed", exit_code=2)
    return key or None


def _signer(path: Path | None) -> Sign | None:
    """The signing function of --sign-receipts; None without it."""
    if path is None:
        return None
    from gruve.receipt.signing import read_private_key

    return read_private_key(path)


def _config(args: argparse.Namespace) -> ServeConfig:
    session_key, export_key = _key(SESSION_KEY, args.session_key_file), _key(EXPORT_KEY)
    for name, (minimum, maximum) in BOUNDS.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value <= maximum:  # NaN is not either
            raise Failure(f"--{name.replace('_', '-')} is {value}; must be {minimum} to {maximum}", exit_code=2)
    if not args.models.is_dir():
        raise Failure(f"--models is {str(args.models)!r}; there is no such folder")
    tls, access = tls_files(args), access_config(args)
    check_exposure(args.host, tls, access, insecure=args.insecure)
    store = default_store() if args.store == "sqlite" else args.store
    ttl_s = args.session_ttl
    if ttl_s is None:
        ttl_s = MEMORY_TTL_S if store == "memory" else STORED_TTL_S
    from gruve.decode.choose import DecodeConfig
    from gruve.engine.engine import EngineConfig
    from gruve.serve.identity import Limits
    from gruve.serve.server import ServeConfig
    from gruve.sessions.table import SessionsConfig

    return ServeConfig(
        models=args.models,
        host=args.host,
        port=args.port,
        metrics_host=args.metrics_host,
        metrics_port=args.metrics_port,
        tls=tls,
        access=access,
        drain_s=args.drain,
        watch_s=args.watch,
        session_key=session_key,
        export_key=export_key,
        log_call=AccessLog(args.access_log, args.access_log_format) if args.access_log else None,
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
        sessions=SessionsConfig(idle_ttl_s=ttl_s, budget_bytes=int(args.session_memory * MIB)),
    )


def limits(text: str) -> dict[str, int]:
    """The limits in a flag, by the names of their fields: `streams=64,tokens-per-minute=600000`."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, number = part.strip().partition("=")
        if name not in LIMITS or not number.isascii() or not number.isdigit():
            raise argparse.ArgumentTypeError(f"must be NAME=N,... with the names {', '.join(LIMITS)}")
        found[name.replace("-", "_")] = int(number)
    return found


def _tell(serving: Serving) -> None:
    line = {
        "event": "serving",
        "port": serving.port,
        "metrics_port": serving.metrics_port,
        "models": list(serving.models),
    }
    print(json.dumps(line), flush=True)
