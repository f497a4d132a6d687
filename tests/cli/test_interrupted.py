"""Ctrl-C: what a command that is interrupted still says, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from gruve.cli import main
from gruve.cli.output.terminal import TextOut


def interrupt_at_the_first_text(monkeypatch):
    write = TextOut.write

    def interrupted(self, text, style=""):
        write(self, text, style)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TextOut, "write", interrupted)


def test_a_generation_that_is_cancelled_leaves_its_seed_and_its_session(fake, capsys, monkeypatch):
    fake.reset(text="abcdef")
    fake.hold = True
    interrupt_at_the_first_text(monkeypatch)
    assert main(["generate", "made-up", "A", "--session", "new", "--seed", "9", "--address", fake.address]) == 130
    assert capsys.readouterr() == ("abc", "cancelled · made-up · seed 9 · session s1\n")


def test_a_tune_that_is_cancelled_leaves_its_seed_and_its_session(tunes, capsys, monkeypatch):
    tunes.hold = True
    interrupt_at_the_first_text(monkeypatch)
    assert main(["generate", "made-up", "--raw", "--session", "new", "--seed", "9", "--address", tunes.address]) == 130
    assert capsys.readouterr().err == "cancelled · made-up · seed 9 · session s1\n"


def test_ctrl_c_while_a_command_is_imported_ends_it_quietly():
    code = """if True:
        import sys
        class Interrupt:
            def find_spec(self, name, *_):
                if name == "gruve.cli.commands.bench":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt())
        from gruve.cli import main
        sys.exit(main(["models"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_first_process_of_a_container_ends_at_sigterm_while_it_starts(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("os.getpid", lambda: 1)
    try:
        assert main(["completion", "bash"]) == 0
        with pytest.raises(SystemExit) as ended:
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
