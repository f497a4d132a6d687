"""`gruve doctor` and `gruve completion`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import pytest

from commands import gruve


def findings(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = gruve("doctor", "--json", *arguments, **environment)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    return done.returncode, {f"{found['topic']} {found['name']}": found for found in told["findings"]}


def test_a_doctor_finds_what_a_server_would_use(server, tiny_repository, tmp_path):
    store = f"sqlite:{tmp_path / 'new' / 'sessions.db'}"
    code, found = findings("--models", str(tiny_repository), "--store", store, "--address", server.address)
    assert code == 0
    assert found["models tiny"]["value"] == "101,442 parameters"
    assert found["decoding backend"]["value"].startswith(("native with ", "reference: ", "cuda: "))
    assert found[f"store {store}"]["value"] == "will be created"
    assert not (tmp_path / "new").exists()
    assert found[f"server {server.address}"]["value"].startswith("serves ")


def test_a_doctor_says_what_is_missing_and_how_to_get_it(tmp_path):
    code, found = findings("--models", str(tmp_path / "none"), "--store", "redis://127.0.0.1:1")
    assert code == 1
    missing = [found[f"models {tmp_path / 'none'}"], found["store redis://127.0.0.1:1"]]
    assert all(one["state"] == "missing" and one["cure"] for one in missing)


def test_a_doctor_says_why_no_server_answers(tiny_repository):
    _, found = findings("--models", str(tiny_repository), "--store", "memory", "--address", "127.0.0.1:1")
    told = found["server 127.0.0.1:1"]
    assert told["value"] == "no server answers at 127.0.0.1:1 (Connection refused)"
    assert told["cure"] == "`gruve serve` starts one"


def test_a_doctor_finds_a_port_in_use(tiny_repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        _, found = findings("--models", str(tiny_repository), "--store", "memory", GRUVE_PORT=port)
    assert found[f"port gRPC 127.0.0.1:{port}"]["state"] == "optional"
    assert "in use" in found[f"port gRPC 127.0.0.1:{port}"]["value"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_its_completions(shell, tmp_path):
    done = gruve("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ("sessions", "max-tokens", "avx512"))
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run((program, "-n", str(script)), check=True, capture_output=True)


def test_bash_completes_commands_and_flags(tmp_path):
    script = tmp_path / "script"
    script.write_text(gruve("completion", "bash").stdout)
    complete = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"
        "$(complete -p gruve | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    for words, expected in ((("gruve", "sess"), "sessions"), (("gruve", "generate", "--temp"), "--temperature")):
        done = subprocess.run(("bash", "-c", complete, "bash", str(script), *words), capture_output=True, text=True)
        assert expected in done.stdout.split(), done.stderr
