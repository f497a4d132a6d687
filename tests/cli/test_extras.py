"""gruve without the extras: a client's commands work, the others name the extra that they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fake_server import FakeServer
from gruve.cli.extras import MODULES
from gruve.client import Client
from server_process import Process

ROOT = Path(__file__).parents[2]
MAX_CLIENT_BYTES = 60_000_000
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))  # such a module is found by no import
from gruve.cli import main
sys.exit(main(sys.argv[2:]))
"""


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def without(extra: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the modules of an extra cannot be imported."""
    command = [sys.executable, "-c", WITHOUT, ",".join(MODULES[extra]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_modules_are_those_of_the_distributions_that_pyproject_names() -> None:
    distributions = packages_distributions()
    for extra, required in (
        ("serve", ["serve"]),
        ("draw", ["draw"]),
        ("http", ["http"]),
        ("train", ["serve", "draw", "train"]),
    ):
        names = {
            line.split(">")[0].partition("[")[0]
            for key in required
            for line in extras()[key]
            if not line.startswith("gruve[")
        }
        assert {distributions[module][0].replace("_", "-").lower() for module in MODULES[extra]} == names


def test_the_commands_of_a_client_need_no_extra(tunes: FakeServer, tmp_path: Path) -> None:
    book, midi = tmp_path / "tune.abc", tmp_path / "tune.mid"
    ran = without("train", "generate", "made-up", "--address", tunes.address, "--out", str(book), "--out", str(midi))
    assert (ran.returncode, ran.stderr.count("wrote")) == (0, 2), ran.stderr
    assert midi.read_bytes().startswith(b"MThd")
    for arguments in (
        ["models", "--address", tunes.address],
        ["tune", "check", str(book)],
        ["completion", "bash"],
    ):
        assert (ran := without("train", *arguments)).returncode == 0, ran.stderr


def test_doctor_says_how_to_get_what_serving_needs() -> None:
    ran = without("train", "doctor")
    assert (ran.returncode, ran.stderr) == (0, "")  # the distributions are there, only their modules are not


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["serve"], "serve"),
        (["keys", "list"], "serve"),
        (["gateway"], "http"),
        (["demo"], "serve,draw"),
        (["train", "--config", "a", "--corpus", "b", "--out", "c"], "train"),
        (["evaluate", "a", "b"], "train"),
        (["export-tokenizer", "a", "b"], "serve"),
        (["bench", "decode"], "train"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(command: list[str], extra: str) -> None:
    ran = without(extra, *command)
    words = " ".join(word for word in command[:2] if command[0] in ("bench", "keys")) or command[0]
    verb = "is" if len(MODULES[extra]) == 1 else "are"
    needed = f"`gruve {words}` needs {', '.join(MODULES[extra])}, which {verb} not installed"
    assert (ran.returncode, ran.stderr) == (1, f"gruve: {needed}: pip install 'gruve[{extra}]'\n")


def test_a_picture_is_refused_before_the_tune_is_generated(tunes: FakeServer, tmp_path: Path) -> None:
    picture = str(tmp_path / "tune.svg")
    ran = without("draw", "generate", "made-up", "--address", tunes.address, "--out", picture)
    why = f"gruve: --out {picture} needs verovio, which is not installed: pip install 'gruve[draw]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", why)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a release would be but without the native library."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, timeout=600, env={**os.environ, "GRUVE_NATIVE": "0"})
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_an_installation_serves_the_model_that_comes_with_it(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=True)
    subprocess.run([environment / "bin/pip", "install", "-q", "--no-deps", wheel], check=True, timeout=300)
    packages = next(environment.glob("lib/*/site-packages"))
    # The wheel's dependencies are those of this installation; its own .pth files, which name a clone, are not read.
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(installed))
    command = [environment / "bin/gruve", "serve", "--port", "0", "--metrics-port", "0", "--store", "memory"]
    with subprocess.Popen(command, cwd=empty, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = json.loads(server.stdout.readline())
            with Client(f"127.0.0.1:{line['port']}") as client:
                assert len(client.complete("ROMEO:", model="tiny", max_tokens=20)) == 20
        finally:
            server.terminate()
            told = server.communicate(timeout=60)[1]
    assert line["models"] == ["tiny"]
    assert "the model that comes with gruve is served" in told


@pytest.mark.slow
def test_an_installation_without_extras_is_small_and_calls_a_real_server(
    wheel: Path, tiny_repository: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python, packages = environment / "bin/python", next(environment.glob("lib/*/site-packages"))
    before = set(packages.iterdir())
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, timeout=600)
    files = [
        file for entry in set(packages.iterdir()) - before for file in (entry, *entry.rglob("*")) if file.is_file()
    ]
    assert sum(file.stat().st_size for file in files) < MAX_CLIENT_BYTES
    with Process(tiny_repository, "--store", "memory") as process:
        address = f"127.0.0.1:{process.line['port']}"
        command = [environment / "bin/gruve", "generate", "tiny", "ROMEO:", "--max-tokens", "20", "--address", address]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, len(ran.stdout)) == (0, 20), ran.stderr
