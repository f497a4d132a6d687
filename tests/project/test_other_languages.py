"""The programs of docs/other-languages.md stream through a killed server, continue a session and cancel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gruve.client import Client
from requiring import need, need_program
from server_process import Process

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "other-languages.md").read_text()


def program(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return code


@pytest.fixture
def servers(tiny_repository: Path, tmp_path: Path) -> Iterator[list[str]]:
    """The arguments of a server that has the same port and the same sessions each time it is started."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return [str(tiny_repository), "--port", str(port), "--store", f"sqlite:{tmp_path}/sessions.db"]


def run_through_a_killed_server(command: list[str], folder: Path, servers: list[str]) -> None:
    """Kills the server while the program prints its first stream; the program prints what an unbroken one has."""
    with Process(*servers) as server:
        address = f"127.0.0.1:{server.line['port']}"
        with Client(address) as client:
            stream = client.generate("ROMEO:", model="tiny", new_session=True, max_tokens=150, seed=7)
            whole = stream.text()
            whole += client.generate("\nJULIET:", session_id=stream.start.session_id, max_tokens=50).text()
        environment = os.environ | {"GRUVE_ADDRESS": address}
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begun = running.stdout.read(20)
        server.signal(9)
    with Process(*servers) as server:
        assert server.line
        rest, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (0, "")
    assert begun + rest == whole + "\ncancelled\n"


@pytest.mark.slow
def test_the_python_program_loses_nothing(servers, tmp_path):
    run_through_a_killed_server([sys.executable, "-c", program("python")], tmp_path, servers)


@pytest.mark.slow
def test_the_node_program_loses_nothing(servers, tmp_path):
    need_program("npm", "apt-get install npm")
    packages = ["npm", "install", "--silent", "--no-audit", "--no-fund", "@grpc/grpc-js", "@grpc/proto-loader"]
    installed = subprocess.run(packages, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    need("node", present=installed, install="npm install @grpc/grpc-js @grpc/proto-loader")
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    (tmp_path / "program.js").write_text(program("js"))
    run_through_a_killed_server(["node", "program.js"], tmp_path, servers)


@pytest.mark.slow
def test_the_go_program_loses_nothing(servers, tmp_path):
    need_program("protoc-gen-go-grpc", "apt-get install protoc-gen-go-grpc, and what docs/other-languages.md names")
    need_program("go", "apt-get install golang-go, and what docs/other-languages.md names")
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    source = tmp_path / "src" / "example" / "program"
    source.mkdir(parents=True)
    (source / "main.go").write_text(program("go"))
    built = subprocess.run(["bash", "-euc", program("bash")], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    run_through_a_killed_server([str(tmp_path / "program")], tmp_path, servers)


@contextlib.contextmanager
def gateway(address: str) -> Iterator[str]:
    command = [sys.executable, "-m", "gruve.cli", "gateway", "--address", address, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_curl_commands_lose_nothing(servers, tmp_path):
    need_program("curl", "apt-get install curl")
    with contextlib.ExitStack() as stack:
        with Process(*servers) as server:
            address = f"127.0.0.1:{server.line['port']}"
            with Client(address) as client:
                whole = client.complete("ROMEO:", model="tiny", max_tokens=150, seed=7)
                first = client.generate("ROMEO:", model="tiny", new_session=True, max_tokens=16, seed=7)
                first.text()
                continued = client.generate("\nJULIET:", session_id=first.start.session_id, max_tokens=16).text()
            environment = os.environ | {"GATEWAY": stack.enter_context(gateway(address))}
            command = ["bash", "-eu", "-c", program("shell")]
            running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            begun = [running.stdout.readline() for _ in range(30)]
            server.signal(9)
        stack.enter_context(Process(*servers))
        output = "".join(begun) + running.communicate(timeout=120)[0]
    assert running.returncode == 0
    streams = re.split(r"^retry: .*\n", output, flags=re.MULTILINE)[1:]
    texts = [
        [json.loads(line[6:]).get("text", "") for line in re.findall(r"^data: .*", s, re.MULTILINE)] for s in streams
    ]
    assert "".join(texts[0]) == whole
    assert "".join(texts[1]) == whole[100 - 1 - len("ROMEO:") :]
    assert whole.startswith("".join(texts[2]))
    assert json.loads(output[output.rindex('{"id"') :])["choices"][0]["text"] == continued
