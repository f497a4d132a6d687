"""Keys: their names, their signatures, and the intervals between them. Independent of tunes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gruve.tune.lexer import ALTER
from gruve.tune.score import LETTERS, SEMITONES, Key, Mode, Pitch

# Fifths from the major key of the same root.
_MODE_FIFTHS: Final[dict[Mode, int]] = {"lyd": 1, "maj": 0, "mix": -1, "dor": -2, "min": -3, "phr": -4, "loc": -5}
_LETTER_FIFTHS: Final = (0, 2, 4, -1, 1, 3, 5)
_SHARP_ORDER: Final = (3, 0, 4, 1, 5, 2, 6)
_MODE_NAMES: Final[dict[str, Mode]] = {
    "": "maj", "maj": "maj", "ion": "maj", "min": "min", "m": "min", "aeo": "min",
    "dor": "dor", "mix": "mix", "phr": "phr", "lyd": "lyd", "loc": "loc",
}  # fmt: skip
_MODE_WORDS: Final = (
    "major", "minor", "ionian", "aeolian", "dorian", "mixolydian", "phrygian", "lydian", "locrian",
)  # fmt: skip
_SHORT_NAMES: Final[dict[Mode, str]] = {"maj": "", "min": "m"}
_KEY: Final = re.compile(
    r"\s*([A-G])([#b]?)\s*([A-Za-z]{0,20})((?:\s{0,8}(?:exp\s{1,8})?(?:\^\^|\^|__|_|=)[A-Ga-g]){0,16})"
)
_EXTRA: Final = re.compile(r"(\^\^|\^|__|_|=)([A-Ga-g])")
_EXPLICIT: Final = re.compile(r"\bexp\b", re.IGNORECASE)
_PIPES: Final = re.compile(r"\s*H[pP]\b")
_OTHER_WORDS: Final = ("clef", "treble", "bass", "alto", "tenor", "oct", "exp", "mid", "stave", "transpose")
_ROOT_SIGNS: Final = {"": 0, "#": 1, "b": -1}
_MOST_SHARPS: Final = 7


def fifths(key: Key) -> int:
    """The key signature as a count of sharps, negative for flats."""
    return _LETTER_FIFTHS[key.letter] + 7 * key.alter + _MODE_FIFTHS[key.mode]


def signature(key: Key) -> tuple[int, ...]:
    """The alteration of each letter, C to B, under the key signature."""
    count = fifths(key)
    alters = [0] * 7
    for n in range(abs(count)):
        letter = _SHARP_ORDER[n % 7] if count > 0 else _SHARP_ORDER[6 - n % 7]
        alters[letter] += 1 if count > 0 else -1
    return tuple(alters)


def parse_key(text: str) -> tuple[Key, tuple[int, ...]] | None:
    """The key that a `K:` field names, with its signature; None if it names no key.

    Modes are read by their first three letters, in any case. Explicit accidentals change the signature but not the key;
    after `exp` they are the whole signature. `HP` and `Hp` (highland pipes) are A mixolydian, the scale of the chanter.
    """
    if _PIPES.match(text):
        key = Key(5, 0, "mix")
        return key, signature(key)
    found = _KEY.match(text)
    if not found:
        return None
    word = "" if found[3].lower().startswith(_OTHER_WORDS) else found[3].lower()
    mode = _MODE_NAMES.get(word[:3])
    if mode is None:
        return None
    key = Key(LETTERS.index(found[1]), _ROOT_SIGNS[found[2]], mode)
    if abs(fifths(key)) > _MOST_SHARPS:
        return None
    alters = [0] * 7 if _EXPLICIT.search(found[0]) else list(signature(key))
    for sign, letter in _EXTRA.findall(found[4]):
        alters[LETTERS.index(letter.upper())] = ALTER[sign]
    return key, tuple(alters)


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key that a user asks for; `mode` is None if only the root is given, and `key` is then its major key."""

    key: Key
    mode: Mode | None


def parse_key_request(text: str) -> KeyRequest | None:
    """The key that a text such as `G`, `Bb`, `Am`, `A minor` or `Ddor` names; None unless the whole text is a key.

    Keys of more than seven sharps or flats are accepted: see `within_seven_signs`.
    """
    found = re.fullmatch(r"([A-G])([#b]?)\s*(m|[A-Za-z]{3,10})?", text.strip())
    if not found:
        return None
    word = (found[3] or "").lower()
    mode = _MODE_NAMES.get(word[:3])
    if mode is None or not any(name.startswith(word) for name in _MODE_WORDS):
        return None
    return KeyRequest(Key(LETTERS.index(found[1]), _ROOT_SIGNS[found[2]], mode), mode if word else None)


def within_seven_signs(key: Key) -> Key:
    """The key, or its enharmonic equivalent if it would need more than seven sharps or flats."""
    return key if abs(fifths(key)) <= _MOST_SHARPS else key_above(key, 0)


def key_name(key: Key, *, short: bool = False) -> str:
    """The key as ABC writes it (`Cmaj`, `F#min`), or with `short` as musicians write it (`C`, `F#m`)."""
    return root_name(key) + (_SHORT_NAMES.get(key.mode, key.mode) if short else key.mode)


def root_name(key: Key) -> str:
    """The root alone: `C`, `F#`, `Bb`."""
    return LETTERS[key.letter] + {0: "", 1: "#", -1: "b"}[key.alter]


def key_words(key: Key) -> str:
    """The key in words: `F# minor`, `D mixolydian`."""
    return root_name(key) + " " + next(word for word in _MODE_WORDS if word.startswith(key.mode))


def moved(pitch: Pitch, steps: int, semitones: int) -> Pitch:
    """The pitch moved by an interval: a number of staff steps and a number of semitones.

    A pitch that would need more than a double sharp or flat is spelled on the next letter instead.
    """
    target = pitch.midi + semitones
    staff = pitch.staff + steps
    for near in (staff, staff + 1, staff - 1):
        alter = target - Pitch(near, 0).midi
        if abs(alter) <= 2:
            return Pitch(near, alter)
    return nearest(target)


def nearest(midi: int) -> Pitch:
    """The pitch of a MIDI number, spelled with a natural or one sharp."""
    octave, semitone = divmod(midi - 60, 12)
    letter = max(n for n, natural in enumerate(SEMITONES) if natural <= semitone)
    return Pitch(7 * octave + letter, semitone - SEMITONES[letter])


def interval(start: Key, end: Key) -> tuple[int, int]:
    """The staff steps and semitones from one root up to another, less than an octave."""
    steps = (end.letter - start.letter) % 7
    semitones = SEMITONES[end.letter] + end.alter - SEMITONES[start.letter] - start.alter
    return steps, semitones + (12 if end.letter < start.letter else 0)


def key_above(key: Key, semitones: int) -> Key:
    """The key of the same mode on the root that is `semitones` higher, spelled with the fewest sharps or flats."""
    root = (SEMITONES[key.letter] + key.alter + semitones) % 12
    spellings = [
        Key(letter, alter, key.mode)
        for letter in range(7)
        for alter in (0, -1, 1)
        if (SEMITONES[letter] + alter) % 12 == root
    ]
    return min(spellings, key=lambda one: (abs(fifths(one)), fifths(one)))
