"""The command line against real processes: exit codes, what goes to which stream, signals."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from commands import GRUVE, generate, gruve, in_a_terminal, read_all, read_until, started
from gruve.cli import main
from gruve.cli.flags.model_folder import models_folder
from gruve.cli.flags.sizes import body_size, size
from gruve.client import Client
from gruve.decode.choose import DecodeConfig
from gruve.engine.engine import EngineConfig
from gruve.model.versions import scan

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("serve", "generate", "chat", "models", "train", "evaluate", "publish", "demo", "doctor")
ANY_PORTS = ("--port", "0", "--metrics-port", "0")


@pytest.fixture
def address(server):
    return server.address


def test_serve_logs_lines_of_json(tiny_repository):
    with started("serve", *ANY_PORTS, "--models", str(tiny_repository), "--log-level", "debug") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "tiny" in [line.get("model") for line in lines]


def test_a_server_without_flags_has_the_engines_own_defaults(tiny_repository, monkeypatch):
    configs = []

    async def serve(config, _):
        configs.append(config)

    monkeypatch.setattr("gruve.serve.server.serve", serve)
    monkeypatch.setattr("gruve.cli.commands.serve.log_to_standard_error", lambda _: None)
    assert main(["serve", "--models", str(tiny_repository)]) == 0
    assert (configs[0].engine, configs[0].decode) == (EngineConfig(), DecodeConfig())


def test_a_server_may_open_as_many_files_as_the_system_allows(tiny_repository, monkeypatch):
    async def serve(*_):
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    limits, (soft, hard) = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("gruve.serve.server.serve", serve)
    monkeypatch.setattr("gruve.cli.commands.serve.log_to_standard_error", lambda _: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert main(["serve", "--models", str(tiny_repository)]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits == [(hard, hard)]


@pytest.mark.parametrize(("flags", "needed"), [(["serve", "--store", "memory"], 564), (["gateway"], 1_064)])
def test_a_server_warns_of_a_low_limit_of_open_files(flags, needed):
    command = 'ulimit -n 128; exec "$0" "$@"'
    # The address is none of this machine, so the command ends by itself.
    flags = [*flags, "--host", "192.0.2.1", "--port", "0", "--insecure"]
    ran = subprocess.run(["bash", "-c", command, *GRUVE, *flags], capture_output=True, text=True, check=False)
    (warned,) = [line for line in map(json.loads, ran.stderr.splitlines()) if "open files" in line["message"]]
    assert (warned["level"], warned["limit"], warned["needed"]) == ("warning", 128, needed)


@pytest.mark.parametrize(
    ("text", "expected"), [("2GiB", 2 << 30), ("500MiB", 500 << 20), ("1.5 KiB", 1_536), ("1TiB", 1 << 40)]
)
def test_a_size_is_a_number_with_a_unit(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("65536", 1 << 16), ("4MiB", 4 << 20), ("1GiB", 1 << 30)])
def test_the_size_of_a_body_may_be_a_number_of_bytes_too(text, expected):
    assert body_size(text) == expected


def test_without_a_folder_of_models_the_one_that_comes_with_gruve_is_served(tiny_repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [model.name for model in scan(models_folder(None)).values()] == ["tiny"]
    assert models_folder(tiny_repository) == tiny_repository
    (tmp_path / "models").mkdir()
    assert models_folder(None) == Path("models")


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "line"),
    [
        (["serve", "--models", "/no/where"], {}, 1, "--models is '/no/where'; there is no such folder"),
        (["serve", "--port", "70000"], {}, 2, "--port is '70000'; must be 0 to 65535"),
        (["serve", "--threads", "0"], {}, 2, "--threads is '0'; must be 1 to 256"),
        (["serve"], {"GRUVE_THREADS": "257"}, 2, "--threads is '257' in GRUVE_THREADS; must be 1 to 256"),
        (["serve", "--slots", "0"], {}, 2, "--slots is '0'; must be 1 to 65536"),
        (["serve", "--slots", "65537"], {}, 2, "--slots is '65537'; must be 1 to 65536"),
        (["serve", "--max-waiting", "-1"], {}, 2, "--max-waiting is '-1'; must be 0 to 1048576"),
        (["serve", "--max-call-ms", "nan"], {}, 2, "--max-call-ms is 'nan'; must be 0.1 to 1000"),
        (["serve", "--drain", "-1"], {}, 2, "--drain is '-1'; must be 0 to 86400"),
        (["serve", "--session-ttl", "0"], {}, 2, "--session-ttl is '0'; must be 1 to 315360000"),
        (["serve", "--session-memory", "64"], {}, 2, "must be a size above 0 in KiB, MiB, GiB or TiB, such as 500MiB"),
        (["serve", "--model-memory", "2"], {}, 2, "--model-memory is '2'; must be a size above 0 in KiB, MiB, GiB"),
        (["serve", "--model-memory", "0GiB"], {}, 2, "--model-memory is '0GiB'; must be a size above 0"),
        (["serve"], {"GRUVE_PORT": "x"}, 2, "--port is 'x' in GRUVE_PORT; must be a whole number"),
        (["serve"], {"GRUVE_DEVICE": "tpu"}, 2, "--device is 'tpu' in GRUVE_DEVICE; must be one of auto, cpu, cuda"),
        (["serve"], {"GRUVE_SESSION_KEY": "short"}, 2, "GRUVE_SESSION_KEY has 5 bytes; at least 16"),
        (["generate"], {}, 2, "the following arguments are required: MODEL"),
        (["generate", "m", "--max-tokens", "many"], {}, 2, "--max-tokens is 'many'; must be a whole number"),
        (["generate", "m", "--out", "x.txt"], {}, 2, "--out is 'x.txt'; its name must end in one of .abc, .svg, .mid"),
        (["generate", "m", "--key", "H"], {}, 2, "--key is 'H'; must be a root from A to G"),
        (["generate", "m", "--n", "0"], {}, 2, "--n is 0; must be 1 to 1000"),
        (["generate", "m", "--n", "2", "--session", "s"], {}, 2, "--n is 2; a session is continued by one tune"),
        (["generate", "m", "--raw", "--key", "G"], {}, 2, "--key has no effect on --raw"),
        (["generate", "m", "--address", ","], {}, 2, "--address is ','"),
        (["models", "--address", "localhost"], {}, 2, "'localhost', which has no port; must be HOST:PORT, such as"),
        (["models"], {"GRUVE_ADDRESS": "http://a:80/"}, 2, 'which is a URL; must be HOST:PORT, such as "a:50051"'),
        (["models", "--address", "a:1,b:99999"], {}, 2, "names 'b:99999', whose port must be 1 to 65535"),
        (["doctor", "--address", "localhost"], {}, 2, "'localhost', which has no port"),
        (["models"], {"GRUVE_ADDRESS": "localhost:1"}, 1, "no server answers at localhost:1 (Connection refused)"),
        (["evaluate", "models/tiny", "/no/where"], {}, 1, "there is no corpus at '/no/where'"),
        (["gateway", "--server", "a:1"], {}, 2, "unrecognized arguments: --server a:1; see `gruve gateway --help`"),
        (["gateway", "--max-body", "2GiB"], {}, 2, "--max-body is '2GiB'; must be 1 to 1GiB, in bytes or with a unit"),
        (
            ["gateway", "--allow-origin", "https://a.example,*"],
            {},
            2,
            "--allow-origin names '*'; must be SCHEME://HOST",
        ),
        (
            ["gateway"],
            {"GRUVE_ALLOW_ORIGIN": "https://a.example/"},
            2,
            "names 'https://a.example/'; must be SCHEME",
        ),
        (["gateway", "--max-body", "0"], {}, 2, "--max-body is '0'; must be 1 to 1GiB"),
        (["gateway"], {"GRUVE_HTTP_MAX_BODY": "4MB"}, 2, "--max-body is '4MB' in GRUVE_HTTP_MAX_BODY; must be 1 to"),
        (["gateway", "--address", "a:1,localhost"], {}, 2, "--address names 'localhost', which has no port; must be"),
        (["nonsense"], {}, 2, "COMMAND is 'nonsense'; must be one of serve, gateway, generate"),
        (["modles"], {}, 2, "did you mean models?; see `gruve --help`"),
        (["generate", "m", "--sesion", "x"], {}, 2, "did you mean --session?; see `gruve generate --help`"),
        (["generate", "m", "--rate", "9"], {}, 2, "unrecognized arguments: --rate 9; see `gruve generate --help`"),
        (["generate", "m", "--server", "a:1"], {}, 2, "unrecognized arguments: --server a:1; see"),
        (["generate", "m", "--temp", "1"], {}, 2, "did you mean --temperature?"),
        (["generate", "m", "--max_tokens", "1"], {}, 2, "did you mean --max-tokens?"),
        (["generate", "m", "--tokens", "1"], {}, 2, "did you mean --max-tokens?"),
        (["serve", "--workers", "2"], {}, 2, "unrecognized arguments: --workers 2; see"),
        (["generate", "m", "--max-tokens", "0"], {}, 2, "--max-tokens is '0'; must be 1 to 65536"),
        (["generate", "m", "--temperature", "nan"], {}, 2, "--temperature is 'nan'; must be 0 to 100"),
        (["demo", "--max-tokens-per-second", "0"], {}, 2, "--max-tokens-per-second is '0'; must be 0.01 to 1000000"),
        (["verify", "README.md"], {}, 1, "the receipt is not JSON: Expecting value"),
        (["generate", "m", "--timeout", "0"], {}, 2, "--timeout is '0'; must be 0.001 or more"),
        (["bench", "bits", "--output", "x.json"], {}, 2, "--output x.json; did you mean --out?"),
        (["bench", "decode", "--plot", "x.xyz"], {}, 2, "--plot is 'x.xyz'; its name must end in .svg, .png or .pdf"),
        (["bench", "decode", "--plot", "/no/where/x.svg"], {}, 2, "there is no folder '/no/where'"),
        (["bench", "decode", "--sizes", "foo"], {}, 2, "--sizes is 'foo'; must be LAYERSxHIDDEN"),
        (["bench", "decode", "--sizes", "9x64"], {}, 2, "must have 1 to 4 layers of 8 to 4096 units"),
        (["bench", "decode", "--batches", "1,x"], {}, 2, "--batches is '1,x'; must be whole numbers from 1"),
        (["bench", "decode", "--backends", "fast"], {}, 2, "--backends is 'fast'; must be of native"),
        (["bench", "chaos", "--scenarios", "flood"], {}, 2, "--scenarios is 'flood'; must be of sqlite-kill"),
        (["completion", "tcsh"], {}, 2, "SHELL is 'tcsh'; must be one of bash, zsh, fish"),
        (["evaluate", "runs/nope", "models/tiny"], {}, 1, "there is no model at 'runs/nope': not a folder"),
        (["evaluate", "models", "models/tiny"], {}, 1, "the model at 'models' cannot be loaded: config.json cannot be"),
        (["export-tokenizer", "models", "/no/where"], {}, 1, "the model at 'models' cannot be loaded: config.json"),
        (
            ["evaluate", "models/tiny", "models", "--temperature", "-1"],
            {},
            2,
            "--temperature is '-1'; must be 0 to 100",
        ),
        (["evaluate", "models/tiny", "models", "--samples", "-1"], {}, 2, "--samples is '-1'; must be 0 or more"),
        (["evaluate", "a", "b", "--part", "tests"], {}, 2, "--part is 'tests'; must be one of validation, test, train"),
        (["models", "add", "models/tiny", "--name", "My"], {}, 2, "--name is 'My', and names the model: model name"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(arguments, environment, code, line, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        returned = main(arguments)
    except SystemExit as ended:
        returned = ended.code
    out, err = capsys.readouterr()
    assert (returned, out) == (code, "")
    assert err.startswith("gruve: ")
    assert err.count("\n") == 1
    assert line in err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["RO€"], 1, "UNKNOWN_CHARACTER: the model has no token for '€' (U+20AC), at line 1, column 3"),
        (["--top-k", "0"], 2, "--top-k: 0 is below 1"),
        (["--top-p", "nan"], 2, "--top-p: nan is not between"),
        (["--repetition-penalty", "0"], 2, "--repetition-penalty"),
        (["--min-tokens", "5", "--max-tokens", "4"], 2, "--min-tokens: 5 is above"),
        (["--session", "forged"], 1, "SESSION_UNKNOWN"),
    ],
)
def test_what_the_server_refuses_is_one_line_too(address, arguments, code, line, capsys):
    assert main(["generate", "tiny", *arguments, "--address", address]) == code
    err = capsys.readouterr().err
    assert err.startswith("gruve: ")
    assert (err.count("\n"), line in err) == (1, True), err


def test_generated_text_alone_goes_to_a_pipe(address):
    done = generate(address, "ROMEO:", "--seed", "7", "--max-tokens", "80")
    with Client(address) as client:
        assert done.stdout == client.generate("ROMEO:", model="tiny", seed=7, max_tokens=80).text()
    assert done.returncode == 0
    assert re.fullmatch(r"tiny · seed 7 · 80 tokens in (\d+ ms|[\d.]+ s) · length\n", done.stderr)


def test_flags_may_stand_between_the_model_and_its_prompt(address):
    before = generate(address, "--seed", "7", "--max-tokens", "20", "ROMEO:")
    assert before.stdout == generate(address, "ROMEO:", "--seed", "7", "--max-tokens", "20").stdout


@pytest.mark.parametrize("prompt", [(), ("-",)])
def test_what_is_piped_in_is_the_prompt_and_may_go_first(address, prompt):
    plain = generate(address, "ROMEO:", "--seed", "7", "--max-tokens", "20", "--quiet", text="not this")
    echoed = generate(address, *prompt, "--seed", "7", "--max-tokens", "20", "--quiet", "--echo", text="ROMEO:")
    assert (echoed.stdout, echoed.stderr) == ("ROMEO:" + plain.stdout, "")


def test_a_terminal_is_not_read_for_a_prompt(fake):
    with in_a_terminal("generate", "made-up", "--address", fake.address, "--quiet") as (process, _, _):
        assert process.wait(60) == 0
    assert not fake.requests[-1].HasField("prompt")


def test_a_prompt_that_is_no_text_is_refused(address):
    command = (*GRUVE, "generate", "tiny", "--address", address)
    done = subprocess.run(command, input=b"RO\xff", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"gruve: standard input is not UTF-8: byte 0xff at 2\n")


def test_a_session_goes_on_where_it_stood(address, capsys):
    def said(*arguments: str) -> tuple[str, str]:
        assert main(["generate", "tiny", *arguments, "--address", address]) == 0
        return capsys.readouterr()

    whole, _ = said("ROMEO:", "--seed", "3", "--max-tokens", "100")
    first, notes = said("ROMEO:", "--seed", "3", "--max-tokens", "40", "--session", "new")
    second, _ = said("--max-tokens", "60", "--session", re.search(r"session (\S+)", notes)[1])
    assert first + second == whole


def test_a_reader_that_leaves_ends_the_command_quietly(address):
    with started("generate", "tiny", "--max-tokens", "65536", "--address", address, "--quiet") as process:
        process.stdout.read(10)
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_ctrl_c_cancels_the_call_and_leaves_the_terminal_clean(fake):
    fake.reset(text="abcdef")
    fake.hold = True
    with in_a_terminal("generate", "made-up", "ROMEO:", "--address", fake.address) as (process, shown, inside):
        before = termios.tcgetattr(inside)
        read_until(shown, b"abc")
        os.write(shown, b"\x03")
        told = read_all(shown, process)
        assert (process.wait(60), told[:2], b"cancelled" in told) == (130, b"\r\n", True), told
        assert termios.tcgetattr(inside) == before
    assert fake.cancelled.wait(30)


def test_a_terminal_shows_the_prompt_dimmed_and_no_control_characters(fake):
    fake.reset(text="a\x1b[2Jb\x9b2J")
    with in_a_terminal("generate", "made-up", "RO", "--address", fake.address, "--quiet") as (process, shown, _):
        assert process.wait(60) == 0
        assert os.read(shown, 4_096) == b"\x1b[2mRO\x1b[0ma\xe2\x90\x9b[2Jb\xef\xbf\xbd2J\r\n"


def test_chat_reads_lines_and_survives_what_is_refused(address):
    done = gruve(
        "chat", "tiny", "--address", address, "--max-tokens", "30", text="ROMEO:\n/temperature 0\n\n€\n/quit\n"
    )
    assert (done.returncode, len(done.stdout)) == (0, 60)
    assert done.stderr.startswith("gruve: UNKNOWN_CHARACTER: the model has no token for '€'")


def test_ctrl_c_in_a_chat_stops_the_answer_alone(address):
    with in_a_terminal("chat", "tiny", "--address", address, "--max-tokens-per-second", "20", TERM="dumb") as (
        process,
        shown,
        _,
    ):
        read_until(shown, b"> ")
        os.write(shown, b"ROMEO:\n")
        read_until(shown, b"ROMEO:\r\n")
        os.read(shown, 1)
        os.write(shown, b"\x03")
        read_until(shown, b"stopped; an empty line goes on\r\n> ")
        os.write(shown, b"\x04")
        assert process.wait(60) == 0


def test_a_model_is_reloaded_and_described(address, capsys):
    assert main(["models", "reload", "tiny", "--address", address]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split("\t")[:2] == ["tiny", "serving"]
    assert main(["models", "reload", "nobody", "--address", address]) == 1
    assert "no model is called 'nobody'" in capsys.readouterr().err


def test_models_are_a_line_each(address, capsys):
    assert main(["models", "--address", address]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {len(line) for line in lines} == {11}
    rows = {line[0]: line[1:] for line in lines}
    assert rows["tiny"][:5] == ["serving", "characters", "66", "gru", "2x96"]
    assert rows["truncated"][0] == "broken"
    assert any("bytes" in cell for cell in rows["truncated"])


def test_the_demo_shows_all_and_ends_by_itself(tiny_repository, tmp_path):
    done = gruve("demo", "--models", str(tiny_repository), "--out", str(tmp_path), "--max-tokens-per-second", "10000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("300 tokens in") == 2
    assert "The server got SIGTERM and ended in order" in done.stdout


def test_a_demo_that_is_interrupted_takes_its_server_with_it(tiny_repository):
    with started("demo", "--models", str(tiny_repository), "--max-tokens-per-second", "5") as process:
        seen = ""
        while "ROMEO:" not in seen:
            seen += process.stdout.readline()
        assert process.stdout.read(1)  # the text flows
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    port = int(re.search(r"localhost:(\d+)", seen)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    listed, told = capsys.readouterr().out.split(f"usage: gruve {command}")
    assert f"\n    {command} " in listed
    assert "example" in told


def test_help_imports_nothing_heavy():
    heavy = {"torch", "numpy", "grpc", "rich", "verovio"}
    code = f"import sys, gruve.cli as cli; cli.make_parser(); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_generating_never_imports_torch(fake):
    code = f"""if True:
        import sys
        from gruve.cli import main
        main(["generate", "made-up", "--address", {fake.address!r}, "--quiet"])
        sys.exit(", ".join({{"torch", "numpy"}} & set(sys.modules)) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
