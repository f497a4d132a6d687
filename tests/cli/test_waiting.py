"""What a command notes while its call waits for a server."""

from __future__ import annotations

import re

import pytest

from gruve.cli import main


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (("sessions", "rewind", "s1", "3"), [("SESSION_BUSY", 0)]),
        (("generate", "made-up", "A"), [("", 0), ("SESSION_BUSY", 0)]),
    ],
)
def test_a_busy_session_is_waited_for_aloud_and_nothing_is_said_of_the_connection(fake, arguments, faults, capsys):
    fake.reset(faults=faults)
    assert main([*arguments, "--address", fake.address]) == 0
    first, second, _ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"SESSION_BUSY: because of SESSION_BUSY; trying again \(\d+ s\)", first)
    assert re.fullmatch(r"accepted after \d+ s, continuing", second)


def test_a_first_connection_that_fails_once_is_not_called_lost(fake, capsys):
    fake.reset(faults=[("refused", 0)])
    assert main(["sessions", "delete", "s1", "--address", fake.address]) == 0
    assert capsys.readouterr().err == "deleted s1\n"
