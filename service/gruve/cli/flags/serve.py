"""The flags of `gruve serve`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gruve.cli.flags.identity import add_identity
from gruve.cli.flags.model_folder import add_models
from gruve.cli.flags.parser import PORT, Parser, add_flag, add_switch, bounded
from gruve.cli.flags.sizes import size, size_or_zero
from gruve.cli.flags.tls_and_log import add_log_level

LIMITS = ("streams", "waiting", "sessions", "stored-bytes", "tokens-per-minute", "requests-per-minute")
"""The limits that `--tenant-limits` and `--total-limits` know."""


def add_flags(parser: Parser) -> None:
    """Declares the flags of `gruve serve`."""
    where = parser.add_argument_group("models and ports")
    add_models(where)
    add_flag(
        where,
        "--watch",
        bounded(float, 0.1, 86_400),
        None,
        "look at the models' files every S seconds, and reload a model whose files have changed; absent, a model is "
        "reloaded by `gruve models reload` alone",
        variable="GRUVE_WATCH_S",
        metavar="S",
    )
    add_flag(
        where,
        "--model-memory",
        size,
        None,
        "memory for models, such as 2GiB: the first request for a model loads it, and idle models are unloaded to make "
        "room; absent, all models are loaded at the start",
        variable="GRUVE_MODEL_MEMORY",
        metavar="SIZE",
    )
    add_flag(
        where,
        "--host",
        str,
        "127.0.0.1",
        "the address that gRPC listens on; 0.0.0.0 for other machines",
        variable="GRUVE_HOST",
        metavar="HOST",
    )
    add_flag(where, "--port", PORT, 50051, "the port of gRPC, 0 for any free one", variable="GRUVE_PORT", metavar="N")
    add_flag(
        where,
        "--http-port",
        PORT,
        None,
        "serve HTTP on this port too, 0 for any free one: starts a `gruve gateway`, which ends with the server; "
        "absent, no HTTP",
        variable="GRUVE_HTTP_PORT",
        metavar="N",
    )
    add_flag(
        where,
        "--metrics-host",
        str,
        "127.0.0.1",
        "the address that /metrics listens on",
        variable="GRUVE_METRICS_HOST",
        metavar="HOST",
    )
    add_flag(
        where,
        "--metrics-port",
        PORT,
        9464,
        "the port of /metrics, 0 for any free one",
        variable="GRUVE_METRICS_PORT",
        metavar="N",
    )
    add_identity(parser.add_argument_group("TLS and authentication"))
    _add_work(parser.add_argument_group("decoding and limits"))
    _add_sessions(parser.add_argument_group("sessions"))
    logs = parser.add_argument_group("logs and traces")
    add_flag(
        logs,
        "--access-log",
        str,
        None,
        "write a line for each call to this file, or to standard output with -; absent, none",
        variable="GRUVE_ACCESS_LOG",
        metavar="FILE|-",
    )
    add_flag(
        logs,
        "--access-log-format",
        str,
        "json",
        "the form of the lines of --access-log",
        variable="GRUVE_ACCESS_LOG_FORMAT",
        choices=("json", "text"),
    )
    add_switch(
        logs,
        "--otel",
        "trace each call with the OpenTelemetry SDK that `opentelemetry-instrument` sets up",
        variable="GRUVE_OTEL",
    )
    add_log_level(logs)


def _add_work(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--device",
        str,
        "auto",
        "where models run; auto takes a GPU if there is one",
        variable="GRUVE_DEVICE",
        choices=("auto", "cpu", "cuda"),
    )
    add_flag(
        group,
        "--threads",
        bounded(int, 1, 256),
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
        "0 decodes on a CPU with torch instead of the native kernels; slower, for comparison",
        variable="GRUVE_NATIVE",
        choices=("0", "1"),
    )
    add_flag(
        group,
        "--isa",
        str,
        None,
        "instruction set of the native kernels: zen4 is AVX-512 with VNNI for a Zen 4, dotprod and neon are for "
        "64-bit ARM; absent, the CPU's fastest",
        variable="GRUVE_ISA",
        choices=("avx512vnni", "avx512", "zen4", "avxvnni", "avx2", "dotprod", "neon", "portable"),
    )
    add_flag(
        group,
        "--cuda",
        str,
        "auto",
        "how a GPU decodes: with Triton's kernels, with torch in CUDA graphs, or with torch one operation at a time; "
        "auto takes the first of these that works",
        variable="GRUVE_CUDA",
        choices=("auto", "triton", "graph", "eager"),
    )
    add_flag(
        group,
        "--arithmetic",
        str,
        "int8",
        "number format of matrix products: int8 is faster and gives the same tokens on every device; float32 rounds "
        "less, and gives other tokens",
        variable="GRUVE_ARITHMETIC",
        choices=("float32", "int8"),
    )
    add_flag(
        group,
        "--slots",
        bounded(int, 1, 65_536),
        1024,
        "sequences that each model decodes at once, 1 to 65536",
        variable="GRUVE_SLOTS",
        metavar="N",
    )
    add_flag(
        group,
        "--max-waiting",
        bounded(int, 0, 1_048_576),
        1024,
        "sequences that may wait for a slot of each model; one more is refused",
        variable="GRUVE_MAX_WAITING",
        metavar="N",
    )
    add_flag(
        group,
        "--tenant-limits",
        limits,
        "",
        "what each tenant may use unless its key says otherwise, such as streams=64,tokens-per-minute=600000; "
        "--total-limits lists the names",
        variable="GRUVE_TENANT_LIMITS",
        metavar="NAME=N,...",
    )
    add_flag(
        group,
        "--total-limits",
        limits,
        "",
        "what all tenants together may use; names are streams, waiting, sessions, stored-bytes, tokens-per-minute, "
        "requests-per-minute",
        variable="GRUVE_TOTAL_LIMITS",
        metavar="NAME=N,...",
    )
    add_flag(
        group,
        "--max-call-ms",
        bounded(float, 0.1, 1_000),
        10.0,
        "milliseconds that one call of the decoder should take; new requests join between two calls, so fewer mean a "
        "shorter time to the first token and less throughput",
        variable="GRUVE_MAX_CALL_MS",
        metavar="MS",
    )
    add_flag(
        group,
        "--drain",
        bounded(float, 0, 86_400),
        30.0,
        "with --store memory, seconds that streams may continue after SIGTERM",
        variable="GRUVE_DRAIN_S",
        metavar="S",
    )


def _add_sessions(group: argparse._ArgumentGroup) -> None:
    add_flag(
        group,
        "--store",
        str,
        default_store(),
        "where sessions are kept: memory, sqlite, sqlite:PATH, or redis://[USER:PASSWORD@]HOST[:PORT][/DB]",
        variable="GRUVE_STORE",
        metavar="STORE",
    )
    add_flag(
        group,
        "--store-sync",
        str,
        "normal",
        "how SQLite writes: normal survives a killed process; full also a power cut, with a flush for each write",
        variable="GRUVE_STORE_SYNC",
        choices=("normal", "full"),
    )
    add_flag(
        group,
        "--session-key-file",
        Path,
        None,
        "a file with the key that authenticates session ids, instead of GRUVE_SESSION_KEY",
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
        bounded(float, 1, 315_360_000),
        None,
        "seconds after its last use that a session is kept; absent, 30 days, or 1 hour with --store memory",
        variable="GRUVE_SESSION_TTL_S",
        metavar="S",
    )
    add_flag(
        group,
        "--session-memory",
        size_or_zero,
        "64MiB",
        "memory for idle sessions, or 0; when it is full, the least recently used are kept in the store alone, or "
        "expire with --store memory",
        variable="GRUVE_SESSION_MEMORY",
        metavar="SIZE",
    )


def default_store() -> str:
    """The store without --store: a file in the user's state folder, by the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return f"sqlite:{folder / 'gruve' / 'sessions.db'}"


def limits(text: str) -> dict[str, int]:
    """The limits in a flag, by the names of their fields: `streams=64,tokens-per-minute=600000`."""
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, number = part.strip().partition("=")
        if name not in LIMITS or not number.isascii() or not number.isdigit():
            raise argparse.ArgumentTypeError(f"must be NAME=N,... with the names {', '.join(LIMITS)}")
        if name == "waiting" and int(number) < 1:
            raise argparse.ArgumentTypeError(f"waiting is {int(number)}; at least 1")
        found[name.replace("-", "_")] = int(number)
    return found
