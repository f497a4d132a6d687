"""abcMIDI's abc2midi hears in what `gruve tune check --fix` writes what it hears in the original.

Compared are the tunes that neither of the two complains about: of a faulty one each has its own reading. Left out on
both sides is what a line of melody has no place for: ornaments, chord symbols, all but the top note of a chord.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

import midi
from gruve.tune.check import check_book
from requiring import need_program
from tunes import BOOKS as FIXTURE

CORPORA = Path(os.environ.get("GRUVE_CORPORA", "")) / "abc"
TOLERANCE = Fraction(1, 64)

Heard = list[tuple[Fraction, int]]


def plain(text: str) -> str:
    """An original without what the reader leaves out by rule and abc2midi plays, and without `||:`.

    abc2midi 4.84 takes `||:` for `||` alone, so `:|` then goes back to the beginning of the tune, pick-up included. It
    reads `|:`, `|||:` and `[|:` as the standard does (ABC 2.1, 4.8), for which all four begin a repeat.
    """
    head, key, music = text.partition("\nK:")
    field, newline, music = music.partition("\n")
    music = re.sub(r'"[^"\n]*"|\{[^}\n]*\}|![^!\n]{1,40}!|[~TuvPHLMOSJR.]+(?=[\^_=]?[A-Ga-gz\[(])', "", music)
    music = music.replace("||:", "|:")
    head = re.sub(r"^%%MIDI.*$", "", head, flags=re.MULTILINE)
    return head + key + field + newline + music


def tops(notes: Heard) -> Heard:
    """Of notes that begin together the highest; abc2midi lets some notes of a chord begin a little later."""
    top: Heard = []
    for start, number in notes:
        if top and start - top[-1][0] < TOLERANCE / 2:
            top[-1] = (top[-1][0], max(number, top[-1][1]))
        else:
            top.append((start, number))
    return top


def equal(ours: Heard, theirs: Heard) -> bool:
    return [number for _, number in ours] == [number for _, number in theirs] and all(
        abs(a - b) < TOLERANCE for (a, _), (b, _) in zip(ours, theirs, strict=True)
    )


def text_of(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.fixture
def heard(tmp_path: Path) -> Callable[[str], Heard | None]:
    """Has abc2midi play a text; None where it complains of anything but the length of a bar, such as a pick-up's."""
    program = need_program("abc2midi", "apt-get install abcmidi")
    source, target = tmp_path / "t.abc", tmp_path / "t.mid"

    def run(text: str) -> Heard | None:
        source.write_text(text, encoding="utf-8")
        target.unlink(missing_ok=True)
        command = [program, str(source), "-o", str(target)]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        faults = [line for line in told if re.search("error|warning", line, re.IGNORECASE) and "time units" not in line]
        return None if faults or not target.exists() else tops(midi.notes(target.read_bytes()))

    return run


def compared(folder: Path, heard: Callable[[str], Heard | None]) -> tuple[int, list[str]]:
    """How many tunes of the books in a folder were compared, and those that sound different when rewritten."""
    count, different = 0, []
    for path in sorted(folder.rglob("*.abc")):
        text = text_of(path)
        lines = text.split("\n")
        for tune in check_book(text):
            original = "\n".join(lines[tune.line - 1 :]).split("\n\n", 1)[0] + "\n"
            # A fermata on an invisible rest: abc2midi gives it time, we do not.
            if not tune.is_right or not tune.fixed or "Hx" in original:
                continue
            theirs = heard(plain(original))
            if theirs:
                count += 1
                different += [] if equal(heard(tune.fixed) or [], theirs) else [f"{path.name} X:{tune.number}"]
    return count, different


def test_the_fixtures_rewritten_tunes_sound_as_their_originals(heard: Callable[[str], Heard | None]) -> None:
    count, different = compared(FIXTURE, heard)
    assert count >= 80
    assert different == []


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.is_dir(), reason="GRUVE_CORPORA names no folder with abc/, the public-domain books")
def test_the_corpora_s_rewritten_tunes_sound_as_their_originals(heard: Callable[[str], Heard | None]) -> None:
    count, different = compared(CORPORA, heard)
    assert count >= 1_300
    assert different == []
