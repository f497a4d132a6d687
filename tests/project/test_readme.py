"""The commands and examples of README and docs/ run as they stand, against a server of the models in models/."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority
from requiring import need_program

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDES = ("quick-start", "python", "music")
GRUVE = Path(sys.executable).parent / "gruve"


def guide(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    shell = [block for text in (README, *map(guide, GUIDES)) for block in blocks("sh", text)]
    lines = [line.split("  #")[0].strip() for block in shell for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def guide_examples(*, tls: bool = False) -> list[str]:
    """The examples in Python; those that connect with TLS, or the others."""
    return [code for name in GUIDES for code in blocks("python", guide(name)) if ("Tls(" in code) == tls]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The address of a server of the models in models/."""
    command = [str(GRUVE), "serve", "--port", "0", "--metrics-port", "0", "--models", str(ROOT / "models"), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f"localhost:{json.loads(server.stdout.readline())['port']}"
        server.send_signal(signal.SIGTERM)


def run(command: list[str], address: str, folder: Path, **more) -> str:
    done = subprocess.run(
        command,
        env=os.environ | {"GRUVE_ADDRESS": address},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make")])
def test_every_make_command_is_a_target(line):
    assert subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("line", [c for c in commands() if "gruve " in c and " serve" not in c])
def test_every_gruve_command_runs(line, address, tmp_path):
    gruve = re.sub(r"(?:\.venv/bin/)?\bgruve (?=[a-z])", f"{GRUVE} ", line)
    assert run(["bash", "-c", gruve], address, tmp_path, input="ROMEO:\n/quit\n" if " chat " in line else "").strip()


def test_the_first_python_example_completes_a_prompt(address, tmp_path):
    code, *_ = blocks("python")
    text = run([sys.executable, "-c", code.replace("localhost:50051", address)], address, tmp_path)
    assert len(text) == 101


def test_the_python_example_streams_and_goes_on(address, tmp_path):
    _, code, *_ = blocks("python")
    text = run([sys.executable, "-c", code.replace("localhost:50051", address)], address, tmp_path)
    assert len(text) == 300


def test_the_python_example_steers_and_forks(address, tmp_path):
    _, _, code, *_ = blocks("python")
    text = run([sys.executable, "-c", code.replace("localhost:50051", address)], address, tmp_path)
    assert len(text) == 300


@pytest.mark.parametrize("code", guide_examples(), ids=lambda code: code.strip().splitlines()[0][:40])
def test_the_examples_of_the_guides_run(code, address, tmp_path):
    assert run([sys.executable, "-c", code.replace("localhost:50051", address)], address, tmp_path).strip()


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[str]:
    """The address of a gateway before the server."""
    command = [str(GRUVE), "gateway", "--address", address, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as gateway:
        yield f"localhost:{json.loads(gateway.stdout.readline())['port']}"
        gateway.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "line", [line for text in (README, guide("http")) for line in text.splitlines() if line.startswith("curl ")]
)
def test_every_call_over_http_is_answered(line, http, address, tmp_path):
    need_program("curl", "apt-get install curl")
    answer = run(["bash", "-c", line.replace("localhost:8080", http)], address, tmp_path)
    assert '"tokens_sha256":' in answer


@pytest.mark.parametrize("code", [blocks("python")[3], *blocks("python", guide("http"))], ids=["readme", "guide"])
def test_the_examples_of_the_openai_client_run(code, http, address, tmp_path):
    assert len(run([sys.executable, "-c", code.replace("localhost:8080", http)], address, tmp_path)) >= 80


def test_the_example_with_tls_and_a_key_runs(tmp_path):
    (code,) = guide_examples(tls=True)
    authority = Authority(tmp_path)
    authority.issue("client")
    cert, key = authority.issue("server")
    added = subprocess.run([GRUVE, "keys", "add", "ann", "--keys", "keys.json"], cwd=tmp_path, capture_output=True)
    (tmp_path / "api-key").write_bytes(added.stdout)
    secured = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.ca, "--keys", tmp_path / "keys.json"]
    with serving(*map(str, secured)) as address:
        example = code.replace("gruve.example.com:50051", address)
        assert "shakespeare" in run([sys.executable, "-c", example], address, tmp_path)


def test_the_example_that_imports_weights_computes_the_same(address, tmp_path):
    (code,) = blocks("python", guide("models"))
    digest, difference = run([sys.executable, "-c", code], address, tmp_path).split()
    assert len(digest) == 64
    assert float(difference) < 1e-5


@pytest.mark.slow
def test_the_models_page_trains_a_model(address, tmp_path):
    (config,) = blocks("toml", guide("models"))
    (tmp_path / "my.toml").write_text(config)
    (tmp_path / "my.txt").write_text(README * 8)
    (lines,) = (block for block in blocks("sh", guide("models")) if "gruve train" in block)
    for line in lines.splitlines()[:2]:
        run([str(GRUVE), *line.split()[1:]], address, tmp_path)
    assert (tmp_path / "runs/my/config.json").exists()


def test_the_picture_is_what_its_caption_says(address, tmp_path):
    (command,) = re.findall(r"`gruve (generate folk [^`]*)`", README)
    run([str(GRUVE), *command.split(), "--out", "tune.abc"], address, tmp_path)
    assert (tmp_path / "tune.abc").read_text() == (ROOT / "models" / "folk" / "tune.abc").read_text()
