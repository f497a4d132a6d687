"""What `gruve demo` advises at its end."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from gruve.cli.commands.demo import _ready, next_steps
from gruve.cli.output.terminal import Failure


def test_in_a_clone_the_next_steps_are_those_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("service/gruve").mkdir(parents=True)
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/bin/gruve").touch()
    steps = list(next_steps(["folk", "shakespeare"], None))
    assert [step.split("  ")[0] for step in steps] == [
        "make serve",
        ".venv/bin/gruve generate folk --max-tokens-per-second 30 --out tune.svg",
        ".venv/bin/gruve chat shakespeare",
        ".venv/bin/gruve --help",
    ]


def test_elsewhere_the_next_steps_are_those_of_the_installed_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for found, gruve in (("/usr/bin/gruve", "gruve"), (None, f"{sys.executable} -m gruve.cli")):
        monkeypatch.setattr("shutil.which", lambda _, found=found: found)
        steps = [step.split("  ")[0] for step in next_steps(["tiny"], Path("my models"))]
        assert steps == [f"{gruve} serve --models 'my models'", f"{gruve} chat tiny", f"{gruve} --help"]


@pytest.mark.parametrize("line", ['{"level": "critical", "message": "no such store"}', "no such store"])
def test_a_server_that_does_not_start_is_explained_by_the_last_line_of_its_log(line):
    log = io.StringIO(f'{{"message": "model loaded"}}\n{line}\n')
    server = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, text=True)
    with server, pytest.raises(Failure, match=r"^the server did not start: no such store$"):
        _ready(server, log)
