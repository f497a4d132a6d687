"""Ctrl-C: what a command that is interrupted still says, and how it ends."""

from __future__ import annotations

import signal

from gruve.cli import main
from gruve.cli.terminal import TextOut


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
