"""The output of commands on a terminal, in a pipe, and with NO_COLOR."""

from __future__ import annotations

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certificates import Authority
from commands import gruve, in_a_terminal, read_all, started
from gruve.cli import make_parser
from gruve.cli.interrupts import interrupt_cancels
from gruve.cli.output.progress_bar import progress_line
from gruve.cli.output.summary import took
from gruve.client import Client
from gruve.ports import TlsFiles
from gruve.training.trainer import Progress
from server_process import Process

ROOT = Path(__file__).resolve().parents[2]


def shown_by(*arguments: str, columns: int = 80, **environment: str) -> str:
    """The output of a command on a terminal with `columns` columns."""
    with in_a_terminal(*arguments, columns=columns, **environment) as (process, shown, _):
        return read_all(shown, process).decode()


def test_models_fit_into_80_columns_with_their_reasons_below(server):
    lines = shown_by("models", "--address", server.address, NO_COLOR="1").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["name", "state", "tokenizer", "vocabulary", "model", "parameters", "backend"]
    tiny = next(line.split() for line in lines if line.startswith("tiny"))
    assert tiny[:6] == ["tiny", "serving", "characters", "66", "gru", "2x96"]
    broken = next(at for at, line in enumerate(lines) if line.startswith("truncated"))
    assert lines[broken + 1].startswith("  model.safetensors") or "bytes" in lines[broken + 1]


def test_models_are_whole_at_40_columns(server):
    shown = shown_by("models", "--address", server.address, columns=40, NO_COLOR="1")
    assert max(map(len, shown.splitlines())) <= 40
    assert {"gru", "2x96", "101,442", "vocabulary"} <= set(shown.split())


def test_models_as_json_have_the_contracts_names(server):
    models = {
        model["name"]: model for model in json.loads(gruve("models", "--address", server.address, "--json").stdout)
    }
    tiny = models["tiny"]
    assert (tiny["state"], tiny["cell"], tiny["reset_convention"]) == ("serving", "gru", "after")
    assert (tiny["num_layers"], tiny["hidden_size"], tiny["parameter_count"]) == (2, 96, 101_442)
    assert (tiny["default_temperature"], models["abc"]["default_temperature"]) == (None, 0.9)
    assert models["truncated"]["state"] == "broken"


def test_models_name_the_temperature_that_they_recommend(server):
    rows = [line.split("\t") for line in gruve("models", "--address", server.address).stdout.splitlines()]
    temperatures = {row[0]: row[rows[0].index("temperature")] for row in rows}
    assert (temperatures["abc"], temperatures["tiny"], temperatures["truncated"]) == ("0.9", "", "")
    assert "Recommended temperature: 0.9." in shown_by("models", "--address", server.address, NO_COLOR="1")


def test_a_chat_begins_with_the_recommended_temperature(server):
    for flags, temperature in ((["--temperature", "1.5"], 1.5), ([], 0.9)):
        arguments = ("chat", "abc", "--address", server.address, "--max-tokens", "5", *flags)
        session = re.search(r"--session (\S+) goes on", gruve(*arguments, text="\n").stderr)[1]
        shown = json.loads(gruve("sessions", "show", session, "--address", server.address, "--json").stdout)
        assert shown["session"]["sampling"]["temperature"] == temperature


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_have_no_styling_at_all(fake, environment):
    assert "\x1b" in shown_by("generate", "made-up", "RO", "--address", fake.address)
    assert "\x1b" not in shown_by("generate", "made-up", "RO", "--address", fake.address, **environment)
    assert "\x1b" not in shown_by("models", "--address", fake.address, **environment)


def test_an_empty_no_color_changes_nothing(fake):
    assert "\x1b[2m" in shown_by("generate", "made-up", "RO", "--address", fake.address, NO_COLOR="")


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("step", [0, 1, 99_999, 100_000])
def test_the_training_bar_is_whole_at_any_width(columns, step):
    progress = Progress(step, 100_000, 10**9, 123_456.7, 1e-3, 1.23456, None)
    line = progress_line(progress, 1.2, 3_600.0, columns)
    assert len(line) < columns
    assert f"{step}/100000" in line
    assert ("loss 1.2346" in line, "tokens/s" in line) == (columns > 30, columns > 60)


def test_training_shows_one_line_at_a_time(tmp_path):
    config = (ROOT / "models" / "tiny" / "training.toml").read_text()
    short = re.sub(r"(?m)^(steps|warmup_steps|validate_every_steps) = .*$", r"\1 = 2", config)
    (tmp_path / "short.toml").write_text(re.sub(r"(?m)^corpus_sha256 = .*$", "", short))
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 300)
    paths = {"config": "short.toml", "corpus": "text.txt", "out": "run"}
    arguments = [part for flag, name in paths.items() for part in (f"--{flag}", str(tmp_path / name))]
    shown = shown_by("train", *arguments, columns=40, NO_COLOR="1")
    assert "\x1b" not in shown
    note, progress, *_ = shown.split("\n")
    assert note.startswith("11,610 characters train")
    lines = progress.split("\r")
    assert max(map(len, lines)) < 40
    assert "2/2  loss" in lines[-1] or "2/2  loss" in lines[-2]


def test_every_exit_code_stands_in_the_help(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    told = capsys.readouterr().out.partition("exit codes:")[2]
    assert re.findall(r"(?m)^  (\d+) ", told) == ["0", "1", "2", "3", "130", "141", "143"]


def test_a_lost_connection_is_noted_and_that_it_goes_on(fake, tmp_path):
    fake.reset(faults=[("", 0), ("reset", 6), ("refused", 0)])
    done = gruve("generate", "made-up", "RO", "--address", fake.address)
    assert done.returncode == 0
    # A slow machine repeats the first line each second.
    notes = r"(connection lost, reconnecting \(\d s\)\n)+connected again after \d+ s, continuing\nmade-up"
    assert re.match(notes, done.stderr)


def test_a_server_that_was_killed_is_waited_for_aloud(tiny_repository, tmp_path):
    flags = ("--store", f"sqlite:{tmp_path / 's.db'}")
    with Process(tiny_repository, *flags) as first:
        port = first.line["port"]
        with started(
            "generate", "tiny", "--max-tokens-per-second", "20", "--max-tokens", "60", "--address", f"127.0.0.1:{port}"
        ) as reader:
            reader.stdout.read(5)
            first.signal(signal.SIGKILL)
            first.end()
            assert re.fullmatch(r"connection lost, reconnecting \(\d s\)\n", reader.stderr.readline())
            with Process(tiny_repository, *flags, "--port", str(port)) as second:
                assert second.line["port"] == port
                text, notes = reader.communicate(timeout=60)
    assert (reader.returncode, len(text)) == (0, 55)
    assert re.search(r"(?m)^connected again after \d+ s, continuing$", notes)


def test_a_server_that_never_answered_is_one_line():
    done = gruve("generate", "tiny", "x", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_an_address_that_leads_nowhere_is_explained():
    done = gruve("models", "--address", "no-such-host.invalid:50051")
    assert (done.returncode, "]" in done.stderr) == (1, False)
    assert done.stderr.endswith("(Domain name not found); `gruve serve` starts one\n"), done.stderr


def test_tls_that_fails_is_explained(start, fake, tmp_path):
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    server = start(tls=TlsFiles(*authority.issue("server")))
    tls = {"GRUVE_CA": str(authority.ca)}
    for address, environment, line in (
        (fake.address, tls, "has no TLS; leave out --tls, --ca and --cert,"),
        (server.address, {}, "(Socket closed); if it has TLS, give --tls or --ca,"),
        (server.address, {"GRUVE_TLS": "1"}, "has a certificate that is not trusted; --ca names the authorities"),
        (server.address, {"GRUVE_CA": str(other.ca)}, "has a certificate that is not trusted; --ca names"),
    ):
        done = gruve("models", "--address", address, **environment)
        assert (done.returncode, done.stderr.count("\n"), line in done.stderr) == (1, 1, True), done.stderr


def test_a_timeout_names_its_seconds(fake):
    fake.hold = True
    done = gruve("generate", "made-up", "--address", fake.address, "--timeout", "0.5")
    assert (done.returncode, done.stderr) == (1, f"gruve: no answer within 0.5 s from {fake.address}\n")


def test_ctrl_c_cancels_a_stream_and_is_raised_when_its_reader_has_ended(fake):
    fake.reset(text="abcdef")
    fake.hold = True
    before = signal.getsignal(signal.SIGINT)
    read = []

    def interrupted(stream):
        with interrupt_cancels(stream), stream:
            for chunk in stream:
                assert not stream.waiting
                read.append(chunk.text)
                signal.raise_signal(signal.SIGINT)  # nothing is raised here

    def interrupted_while_it_waits(stream):
        with interrupt_cancels(stream), stream:
            signal.raise_signal(signal.SIGINT)
            read.append("more")

    with Client(fake.address) as client:
        stream, waits = (client.generate("ROMEO:", model="made-up") for _ in range(2))
        assert stream.waiting
        with pytest.raises(KeyboardInterrupt):
            interrupted(stream)
        with pytest.raises(KeyboardInterrupt):
            interrupted_while_it_waits(waits)
    assert ("".join(read), stream.ended) == ("abc", False)
    assert fake.cancelled.wait(60)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_in_another_thread_is_left_alone(fake):
    fake.reset(text="abc")
    with Client(fake.address) as client, ThreadPoolExecutor(1) as pool:
        stream = client.generate("ROMEO:", model="made-up")

        def read() -> str:
            with interrupt_cancels(stream), stream:
                return stream.text()

        assert pool.submit(read).result() == "abc"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0274, "27 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (72.04, "72.0 s")]
)
def test_a_fast_generation_took_milliseconds(seconds, words):
    assert took(seconds) == words
