"""Standard streams that are closed or full: no traceback, and an exit code that says whether the output is there."""

from __future__ import annotations

import subprocess

import pytest

from commands import GRUVE
from gruve.cli import main


@pytest.fixture
def full():
    with open("/dev/full", "w") as file:
        yield file


@pytest.mark.parametrize("arguments", [("models",), ("generate", "made-up", "A"), ("sessions", "show", "s1")])
def test_a_closed_standard_output_is_one_line(fake, arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main([*arguments, "--address", fake.address]) == 1
    assert capsys.readouterr().err == "gruve: standard output: Bad file descriptor\n"


def test_a_command_that_prints_nothing_needs_no_standard_output(fake, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["sessions", "delete", "s1", "--address", fake.address]) == 0
    assert capsys.readouterr().err == "deleted s1\n"


def test_without_standard_error_there_are_no_notes_and_nothing_fails(fake, full, monkeypatch, capsys):
    fake.reset(text="abc")
    for stream in (None, full):
        monkeypatch.setattr("sys.stderr", stream)
        assert main(["generate", "made-up", "A", "--address", fake.address]) == 0
        assert main(["generate", "made-up", "A", "--session", "s1", "--n", "0", "--address", fake.address]) == 2
        assert capsys.readouterr().out == "abc"


def test_a_closed_standard_input_is_empty(fake, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["chat", "made-up", "--session", "s1", "--address", fake.address]) == 0
    assert capsys.readouterr().err.startswith("gruve chat made-up --session s1 goes on")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("generate", "--help"), ("completion", "bash")])
def test_help_that_cannot_be_written_is_an_error(arguments, full, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", full)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert (err.startswith("gruve: "), err.endswith(" No space left on device\n"), err.count("\n")) == (True, True, 1)


def test_a_full_disk_has_no_number_where_python_buffers_nothing():
    script = 'PYTHONUNBUFFERED=1 "$@" >/dev/full'
    done = subprocess.run(["sh", "-c", script, "sh", *GRUVE, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "gruve: No space left on device\n")


def test_nothing_complains_when_python_ends():
    script = '"$@" >&-; echo $?; "$@" 2>/dev/full; echo $?'
    done = subprocess.run(["sh", "-c", script, "sh", *GRUVE, "tune"], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n2\n"
    assert done.stderr.count("\n") == 1
