"""`gruve demo`: starts a server and shows its streams token by token."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gruve.cli.calls import connected, default_temperature
from gruve.cli.flags.model_folder import add_models, models_folder
from gruve.cli.flags.parser import Parser, add_command, add_flag
from gruve.cli.flags.sampling import PACE
from gruve.cli.interrupts import interrupt_cancels
from gruve.cli.output.summary import default_title, summary
from gruve.cli.output.terminal import Failure, TextOut, standard_output
from gruve.cli.tunes import finished_tune, origin, write_tune_files
from gruve.errors import TuneError

if TYPE_CHECKING:
    from gruve.client import Client, TokenStream

DESCRIPTION = """Start a server on a free port, and show a folk tune and a text while they are written.

The tune is drawn, and a second request continues the text. Then the server is stopped. The tune stays in the folder of
--out."""
EXAMPLES = """\
examples:
  gruve demo
  gruve demo --max-tokens-per-second 100
"""
START_WITHIN_S = 90.0
END_WITHIN_S = 45.0
TUNE_MODELS, TEXT_MODELS = ("folk",), ("shakespeare", "tiny")
"""The models that are shown if they serve, the best first."""
TUNE_SEEDS = range(1, 6)
TEXT_PROMPT = "ROMEO:\n"
TEXT_TOKENS = 300
TUNE_TOKENS = 600


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "demo", DESCRIPTION, EXAMPLES, run, extra="serve,draw")
    add_models(parser)
    add_flag(parser, "--out", Path, "demo", "where the tune is written", metavar="DIR")
    add_flag(parser, "--max-tokens-per-second", PACE, 30.0, "maximum number of tokens per second", metavar="N")


def run(args: argparse.Namespace) -> int:
    """Runs the whole show; the server is stopped in any case."""
    out = standard_output()
    with _ended_by_signals(), _serving(models_folder(args.models)) as (server, told):
        address = f"localhost:{told['port']}"
        _say(out, f"A server is ready on {address}, with the models {', '.join(told['models'])}.")
        with connected(address) as client:
            _show_tune(client, told["models"], args, out)
            _show_text(client, told["models"], args, out)
        before = time.monotonic()
        _stop(server)
        _say(out, f"The server got SIGTERM and ended in order after {time.monotonic() - before:.1f} s.")
    _say(out, "To go on:")
    for line in next_steps(told["models"], args.models):
        out.write(f"  {line}\n")
    return 0


def next_steps(models: list[str], folder: Path | None) -> Iterator[str]:
    """Commands that exist here: those of a clone that `make` has set up, else the one that is installed."""
    if Path("service/gruve").is_dir() and Path(".venv/bin/gruve").exists():
        gruve, serve = ".venv/bin/gruve", "make serve"
    else:
        gruve = "gruve" if shutil.which("gruve") else f"{shlex.quote(sys.executable)} -m gruve.cli"
        serve = f"{gruve} serve" + ("" if folder is None else f" --models {shlex.quote(str(folder))}")
    yield f"{serve:<25}  a server on localhost:50051 until Ctrl-C; then, in a second terminal:"
    if tune := _serving_name(TUNE_MODELS, models):
        yield f"{gruve} generate {tune} --max-tokens-per-second 30 --out tune.svg"
    if text := _serving_name(TEXT_MODELS, models):
        yield f"{gruve} chat {text}"
    yield f"{f'{gruve} --help':<25}  everything else"


def _show_tune(client: Client, models: list[str], args: argparse.Namespace, out: TextOut) -> None:
    """Streams a tune and draws it; of one that cannot be drawn says why, and streams the next."""
    name = _serving_name(TUNE_MODELS, models)
    if name is None:
        _say(out, f"There is no model called {' or '.join(TUNE_MODELS)} here, so no tune is written.")
        return
    from gruve.tune.write import complete, write_tune

    paths = [args.out / "tune.abc", args.out / "tune.svg"]
    model = next(model for model in client.models() if model.name == name)
    temperature = default_temperature(model)
    for seed in TUNE_SEEDS:
        _say(
            out,
            f"A folk tune in ABC notation by {name!r}, seed {seed}, {args.max_tokens_per_second:g} tokens per second:",
        )
        stream = client.generate(
            model=name,
            seed=seed,
            temperature=temperature,
            max_tokens=TUNE_TOKENS,
            max_tokens_per_second=args.max_tokens_per_second,
            max_tokens_per_message=1,
        )
        text = _stream(stream, out)
        out.write("\n")
        try:
            tune = complete(finished_tune(text, lambda note: out.write(f"{note}\n")))
            abc = write_tune(tune, title=default_title(stream), fields=origin(stream, model))
            write_tune_files([abc], paths, lambda note: out.write(f"{note}\n"))
        except (Failure, TuneError) as error:
            out.write(f"{error}\n")
            continue
        out.write("Open the .svg in any browser: it is this tune.\n")
        return
    raise Failure(f"none of {len(TUNE_SEEDS)} tunes by {name!r} could be drawn")


def _show_text(client: Client, models: list[str], args: argparse.Namespace, out: TextOut) -> None:
    """Streams a text, then continues it in the same session."""
    name = _serving_name(TEXT_MODELS, models)
    if name is None:
        _say(out, f"There is no model called {' or '.join(TEXT_MODELS)} here, so no text is written.")
        return
    if name != TEXT_MODELS[0]:
        _say(out, f"There is no model called {TEXT_MODELS[0]!r} here; {name!r} writes instead.")
    _say(out, f"A passage by {name!r}, seed 1, temperature 0.8; the server keeps it as a session:")
    out.write(TEXT_PROMPT, "dim")
    pace: dict[str, Any] = {
        "max_tokens": TEXT_TOKENS,
        "max_tokens_per_second": args.max_tokens_per_second,
        "max_tokens_per_message": 1,
    }
    first = client.generate(TEXT_PROMPT, model=name, new_session=True, seed=1, temperature=0.8, **pace)
    _stream(first, out)
    if not first.started:
        raise Failure(f"{name!r} generated nothing")
    _say(
        out, "The same session, continued by a second request; the server knows its text, state, seed and temperature:"
    )
    _stream(client.generate(session_id=first.start.session_id, **pace), out)
    client.delete_session(first.start.session_id)


def _serving_name(wanted: tuple[str, ...], models: list[str]) -> str | None:
    """The best of the wanted models that serves."""
    return next((name for name in wanted if name in models), None)


def _stream(stream: TokenStream, out: TextOut) -> str:
    """Prints a stream as it comes; returns its text."""
    before = time.monotonic()
    parts: list[str] = []
    with interrupt_cancels(stream), stream:
        for chunk in stream:
            parts.append(chunk.text)
            out.write(chunk.text)
    out.write("" if "".join(parts).endswith("\n") else "\n")
    out.write(f"[{summary(stream, time.monotonic() - before)}]\n", "dim")
    return "".join(parts)


def _say(out: TextOut, line: str) -> None:
    out.write(f"\n{line}\n", "bold")


@contextlib.contextmanager
def _serving(models: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server process and its line of readiness; the process is gone afterwards."""
    command = [
        sys.executable,
        "-m",
        "gruve.cli",
        "serve",
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--store",
        "memory",
        "--models",
        str(models),
    ]
    with tempfile.TemporaryFile("w+") as log:
        # A session of its own: Ctrl-C is for this process, which then ends the server in order.
        server = subprocess.Popen(  # noqa: S603 - this very program
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            yield server, _ready(server, log)
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(END_WITHIN_S)
                server.kill()
                server.wait()


def _ready(server: subprocess.Popen[str], log: IO[str]) -> dict[str, Any]:
    """Waits for the server's line; raises `Failure` with the last of its log if there is none."""
    import threading

    assert server.stdout is not None  # noqa: S101 - it is a pipe
    impatience = threading.Timer(START_WITHIN_S, server.kill)
    impatience.start()
    try:
        line = server.stdout.readline()
    finally:
        impatience.cancel()
    if line:
        told: dict[str, Any] = json.loads(line)
        return told
    server.wait()
    log.seek(0)
    last = log.read().strip().rpartition("\n")[2]
    with contextlib.suppress(ValueError):  # wrong usage is a plain line
        last = json.loads(last)["message"]
    raise Failure(f"the server did not start: {last or f'it was not ready within {START_WITHIN_S:.0f} s'}")


def _stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"the server did not end within {END_WITHIN_S:.0f} s of SIGTERM") from error
    if code:
        raise Failure(f"the server ended with exit code {code}")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this process as Ctrl-C does: in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
