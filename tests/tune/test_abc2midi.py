"""abc2midi, an independent reader, plays the same notes as we do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

import midi
from gruve.tune.play import midi_file
from gruve.tune.score import Key
from gruve.tune.tokens import detokenize, join
from gruve.tune.transpose import to_key
from gruve.tune.write import write_tune
from requiring import need_program
from tunes import kept

Heard = tuple[list[str], list[tuple[Fraction, int]]]


@pytest.fixture
def abc2midi(tmp_path: Path) -> Callable[[str], Heard]:
    """Runs abc2midi on a text: its lines of error or warning, and the notes it plays."""
    program = need_program("abc2midi", "apt-get install abcmidi")
    source, target = tmp_path / "tune.abc", tmp_path / "tune.mid"

    def run(abc: str) -> Heard:
        source.write_text(abc, encoding="utf-8")
        said = subprocess.run(
            [program, str(source), "-o", str(target)], capture_output=True, text=True, check=True
        ).stdout
        complaints = [line for line in said.splitlines() if "error" in line.lower() or "warning" in line.lower()]
        return complaints, midi.notes(target.read_bytes())

    return run


def test_abc2midi_plays_every_kept_tune_as_we_do_without_a_complaint(abc2midi: Callable[[str], Heard]) -> None:
    for one in kept():
        tune = to_key(detokenize(one.tokens), Key(1, 0, "maj"))
        complaints, heard = abc2midi(write_tune(tune))
        assert complaints == [], one.source
        meant = midi.notes(midi_file(tune))
        assert [number for _, number in heard] == [number for _, number in meant], one.source
        assert all(abs(a - b) < Fraction(1, 64) for (a, _), (b, _) in zip(heard, meant, strict=True)), one.source


def test_abc2midi_reads_the_bare_text_of_tokens_without_a_complaint(abc2midi: Callable[[str], Heard]) -> None:
    assert not [one.source for one in kept() if abc2midi("X:1\n" + join(one.tokens))[0]]
