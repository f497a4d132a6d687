"""`gruve bench`: the benchmarks, each ending in one line of JSON on standard output."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruve.cli.exit_codes import USAGE
from gruve.cli.extras import require_extra
from gruve.cli.flags.bench import PICTURES, numbers, picture, size, sizes, words
from gruve.cli.flags.parser import Parser, add_command, add_flag, bounded
from gruve.cli.output.terminal import Failure

if TYPE_CHECKING:
    from gruve.bench.result import Result, Row

DESCRIPTION = """Measure gruve and compare it with its alternatives.

Progress is printed line by line; the last line is one JSON object {"benchmark", "machine", "versions", "rows"}, and
"skipped" with what could not be measured and why. A list that is not given has every value that the benchmark knows, or
fewer with --quick."""
CHAOS = """Kill servers, stop them and take their store away while streams run, and compare every token.

One line of JSON for each scenario; the exit code is 1 where a token differs, is lost or comes twice, or a stream fails.
A scenario that needs Redis or HAProxy is skipped where they are not installed, and its line says so."""
CELLS = """Train an Elman network, an LSTM and two forms of the GRU on your corpus, with equally many parameters.

The comparison of Chung et al. 2014. Each is trained with three learning rates, and with more seeds at the best one; all
rows are in the JSON, and the table has the means of each cell."""
EXAMPLES = """\
examples:
  gruve bench decode --quick                     one decode step beside its peers and the CPU's roofline
  gruve bench serve --quick                      64 sessions against a server of its own
  gruve bench peers --plot peers.svg             installs the peers into .bench and compares; half an hour
  gruve bench chaos --quick                      kills servers under 64 streams and compares every token
  gruve bench overload --plot overload.svg       500 streams beside one, and 5 times the capacity
  gruve bench gateway --plot gateway.svg         HTTP beside direct gRPC, every token compared
  gruve bench gpu --plot gpu.svg                 proves and measures the GPU path, in under 8 minutes
  gruve bench cells --corpus input.txt --plot cells.svg   which cell learns your corpus best
  gruve bench bits                               a digest for comparing CPUs
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command and its benchmarks."""
    parser = add_command(commands, "bench", DESCRIPTION, EXAMPLES)
    kinds = parser.add_subparsers(metavar="BENCHMARK", required=True)
    decode = _kind(
        kinds, "decode", "One decode step, sampling included, with gruve's backends and with other libraries.", _decode
    )
    add_flag(decode, "--sizes", sizes, None, "models as LAYERSxHIDDEN, such as 2x256,3x512", metavar="LIST")
    add_flag(decode, "--batches", numbers, None, "rows of a step, such as 1,16,64", metavar="LIST")
    add_flag(decode, "--threads", numbers, None, "numbers of threads, such as 1,2", metavar="LIST")
    add_flag(decode, "--backends", words, None, "what to measure, such as native_int8,torch", metavar="LIST")
    _plot(decode)
    serve = _kind(kinds, "serve", "The server under load from other processes, compared with the bare engine.", _serve)
    add_flag(serve, "--size", size, None, "the model as LAYERSxHIDDEN, such as 3x512", metavar="SIZE")
    add_flag(serve, "--sessions", numbers, None, "sessions that generate at once, such as 1,64", metavar="LIST")
    add_flag(serve, "--threads", bounded(int, 1, 256), None, "threads that decode", metavar="N")
    add_flag(serve, "--arithmetic", str, "int8", "number format of the products", choices=("float32", "int8"))
    add_flag(
        serve, "--soak-minutes", bounded(float, 0, None), None, "how long memory is watched at the end", metavar="N"
    )
    peers = _kind(kinds, "peers", "The same model behind gruve and behind other model servers.", _peers)
    add_flag(peers, "--sizes", sizes, None, "models as LAYERSxHIDDEN, such as 2x256,3x512", metavar="LIST")
    add_flag(peers, "--streams", numbers, None, "streams at once, such as 8,64", metavar="LIST")
    add_flag(peers, "--systems", words, None, "what to measure, such as gruve,Triton", metavar="LIST")
    add_flag(peers, "--cache", Path, None, "where the peers are installed", metavar="DIR")
    _plot(peers)
    growth = _kind(kinds, "growth", "Speed and memory by the number of active and idle sessions.", _growth)
    _plot(growth)
    _kind(kinds, "front", "The limit of the server itself, with a backend that computes nothing.", _front)
    _kind(kinds, "protection", "The cost of API keys and TLS, compared with the same server without them.", _protection)
    sessions = _kind(
        kinds, "sessions", "The cost of sessions: storing, evicting, rewinding, and having many.", _sessions
    )
    add_flag(sessions, "--stored", bounded(int, 1, None), None, "sessions that one server serves", metavar="N")
    overload = _kind(
        kinds,
        "overload",
        "A server with more requests than it can serve: a greedy tenant, too many streams, refusals.",
        _overload,
    )
    _plot(overload)
    gateway = _kind(
        kinds, "gateway", "HTTP through a gateway compared with direct gRPC: speed, limit, memory.", _gateway
    )
    _plot(gateway)
    chaos = _kind(kinds, "chaos", CHAOS, _chaos)
    add_flag(
        chaos,
        "--scenarios",
        words,
        None,
        "what is done to the servers, such as sqlite-kill,redis-restart",
        metavar="LIST",
    )
    gpu = _kind(
        kinds,
        "gpu",
        "The GPU path: proofs, a step compared with other libraries and with the GPU's limit, the server.",
        _gpu,
    )
    add_flag(gpu, "--modes", words, None, "ways of decoding: triton, graph, eager", metavar="LIST")
    gpu.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    _plot(gpu)
    cells = _kind(kinds, "cells", CELLS, _cells)
    cells.add_argument("--corpus", type=Path, required=True, metavar="PATH", help="text file, or folder of ABC books")
    add_flag(cells, "--cells", words, None, "what to train: gru, gru_before, lstm, elman", metavar="LIST")
    add_flag(cells, "--parameters", bounded(int, 1_000, None), None, "parameters of each network", metavar="N")
    add_flag(cells, "--updates", bounded(int, 1, None), None, "updates of each run", metavar="N")
    add_flag(cells, "--seeds", bounded(int, 1, None), None, "runs with the best learning rate", metavar="N")
    _plot(cells)
    _kind(kinds, "bits", "A digest of 10,000 tokens of every cell, for comparing devices.", _bits)


def _front(args: argparse.Namespace) -> int:
    from gruve.bench.front import FrontBenchConfig, run_front

    return _end(run_front(_config(FrontBenchConfig, args), _say), args)


def _protection(args: argparse.Namespace) -> int:
    from gruve.bench.protection import ProtectionBenchConfig, run_protection

    return _end(run_protection(_config(ProtectionBenchConfig, args), _say), args)


def _sessions(args: argparse.Namespace) -> int:
    from gruve.bench.sessions import SessionsBenchConfig, run_sessions

    return _end(run_sessions(_config(SessionsBenchConfig, args, "stored"), _say), args)


def _chaos(args: argparse.Namespace) -> int:
    import asyncio
    import json
    import signal

    from gruve.bench.chaos.measure import SCENARIOS, ChaosBenchConfig, run_chaos

    config = _config(ChaosBenchConfig, args, "scenarios")
    _require_known("--scenarios", config.scenarios, SCENARIOS)
    lines: list[str] = []

    def tell(row: dict[str, object]) -> None:
        lines.append(json.dumps(row))
        _say(lines[-1])

    async def run() -> bool:
        # Ended in order by SIGTERM as well, so that no server is left behind.
        task = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel if task else lambda: None)
        return await run_chaos(config, tell, _say)

    try:
        passed = asyncio.run(run())
    except asyncio.CancelledError:
        raise Failure("ended by SIGTERM", exit_code=128 + signal.SIGTERM) from None
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")
    return 0 if passed else 1


def _kind(kinds: Any, name: str, description: str, run: Any) -> Parser:
    parser = add_command(kinds, name, description, EXAMPLES, run, extra="train")
    parser.add_argument("--quick", action="store_true", help="less of everything, in about a minute")
    add_flag(parser, "--out", Path, None, "also write the JSON here", metavar="FILE")
    return parser


def _plot(parser: Parser) -> None:
    add_flag(parser, "--plot", picture, None, f"draw it; the name ends in {PICTURES}", metavar="FILE")


def _decode(args: argparse.Namespace) -> int:
    from gruve.bench.decode.measure import DecodeBenchConfig, run_decode
    from gruve.bench.decode.steppers import BACKENDS
    from gruve.bench.plots import plot_decode

    config = _config(DecodeBenchConfig, args, "sizes", "batches", "threads", "backends")
    _require_known("--backends", config.backends, BACKENDS)
    return _end(run_decode(config, _say), args, plot_decode)


def _serve(args: argparse.Namespace) -> int:
    from gruve.bench.serve import ServeBenchConfig, run_serve

    config = _config(ServeBenchConfig, args, "size", "sessions", "soak_minutes")
    decode = dataclasses.replace(config.decode, threads=args.threads, arithmetic=args.arithmetic)
    config = dataclasses.replace(config, decode=decode)
    return _end(run_serve(config, _say), args)


def _peers(args: argparse.Namespace) -> int:
    from gruve.bench.peers.measure import PeersBenchConfig, run_peers
    from gruve.bench.plots import plot_peers

    config = _config(PeersBenchConfig, args, "sizes", "streams", "systems", "cache")
    _require_known("--systems", config.systems, PeersBenchConfig().systems)
    return _end(run_peers(config, _say), args, plot_peers)


def _growth(args: argparse.Namespace) -> int:
    from gruve.bench.growth import GrowthBenchConfig, run_growth
    from gruve.bench.plots import plot_growth

    return _end(run_growth(_config(GrowthBenchConfig, args), _say), args, plot_growth)


def _overload(args: argparse.Namespace) -> int:
    from gruve.bench.overload import OverloadBenchConfig, run_overload
    from gruve.bench.plots import plot_overload

    return _end(run_overload(_config(OverloadBenchConfig, args), _say), args, plot_overload)


def _gateway(args: argparse.Namespace) -> int:
    require_extra("http", "`gruve bench gateway`")
    from gruve.bench.gateway.measure import GatewayBenchConfig, run_gateway
    from gruve.bench.plots import plot_gateway

    return _end(run_gateway(_config(GatewayBenchConfig, args), _say), args, plot_gateway)


def _gpu(args: argparse.Namespace) -> int:
    from gruve.bench.gpu.measure import GpuBenchConfig, held, run_gpu, sees_gpu
    from gruve.bench.plots import plot_gpu

    if not args.dry_run and not sees_gpu():
        raise Failure("torch sees no GPU: there is nothing to prove or to measure here")
    config = GpuBenchConfig.dry() if args.dry_run else _config(GpuBenchConfig, args, "modes")
    _require_known("--modes", config.modes, GpuBenchConfig().modes)
    result = run_gpu(config, _say, dry=args.dry_run)
    _end(result, args, None if args.dry_run else plot_gpu)
    return 0 if held(result) else 1


def _cells(args: argparse.Namespace) -> int:
    from gruve.bench.cells import CellsBenchConfig, run_cells

    config = _config(CellsBenchConfig, args, "corpus", "cells", "parameters", "updates", "seeds", "plot")
    _require_known("--cells", config.cells, CellsBenchConfig().cells)
    return _end(run_cells(config, _say), args)


def _bits(args: argparse.Namespace) -> int:
    from gruve.decode.cuda.device import gpu_unavailable_reason

    if gpu_unavailable_reason() is not None:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which the next line may do
    from gruve.bench.bits import BitsBenchConfig, run_bits

    return _end(run_bits(_config(BitsBenchConfig, args), _say), args)


def _require_known(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises `Failure` if a name is none of the known ones, before anything is measured."""
    if unknown := sorted(set(given) - set(known)):
        raise Failure(f"{flag} is {','.join(unknown)!r}; must be of {', '.join(known)}", USAGE)


def _config(kind: Any, args: argparse.Namespace, *names: str) -> Any:
    """The quick or the full configuration, with the values of the flags."""
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return dataclasses.replace(kind.quick() if args.quick else kind(), **given)


def _end(result: Result, args: argparse.Namespace, plot: Callable[[Sequence[Row], Path], None] | None = None) -> int:
    """Saves and prints a result, then draws its rows: no result is lost if the drawing fails."""
    if args.out:
        result.save(args.out)
    print(result.to_json())
    if plot is not None and args.plot and result.rows:
        plot(result.rows, args.plot)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
