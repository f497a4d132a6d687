"""Tunes for tests: the 200 of the fixture, tokens for random nonsense, and generated tunes in normal form."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from gruve.tune.books import Corpus, Kept, read_books
from gruve.tune.score import WHOLE, Bar, Event, Key, Meter, Mode, Note, Pitch, Tune, Tuplet, default_into
from gruve.tune.tokens import BAR_TEXT

BOOKS = Path(__file__).parent / "data"
UNIT = WHOLE // 8


@cache
def fixture() -> Corpus:
    return read_books(BOOKS)


def kept() -> tuple[Kept, ...]:
    return fixture().kept


def abc(music: str, meter: str = "4/4", key: str = "C", unit: str = "1/8") -> str:
    return f"X:1\nM:{meter}\nL:{unit}\nK:{key}\n{music}\n"


TOKENS = [
    "L:1/8\n", "L:1/16\n", "M:6/8\n", "M:4/4\n", "K:Cmaj\n", "K:Cdor\n", *BAR_TEXT.values(), "C", "^F", "_B,", "c'",
    "=e", "z", "2", "3", "/2", "3/2", "/4", "8", ">", "<", "(3", "(2", "(5:4:3", "-",
]  # fmt: skip
token_lists = st.lists(st.sampled_from(TOKENS), max_size=60)

pitches = st.builds(Pitch, st.integers(-10, 20), st.integers(-1, 1))
lengths = st.sampled_from([UNIT, UNIT, UNIT * 2, UNIT // 2, UNIT * 3 // 2, UNIT * 3, UNIT // 4])
notes = st.builds(Note, st.one_of(st.none(), pitches, pitches), lengths)
keys = st.builds(
    Key, st.integers(0, 6), st.just(0), st.sampled_from(["maj", "min", "dor", "mix"]).map(lambda mode: _mode(mode))
)
METERS = [Meter(4, 4), Meter(2, 2), Meter(6, 8), Meter(3, 4), Meter(2, 4), Meter(9, 8)]


def _mode(name: str) -> Mode:
    modes: dict[str, Mode] = {"maj": "maj", "min": "min", "dor": "dor", "mix": "mix"}
    return modes[name]


@st.composite
def _bar(draw: st.DrawFn, meter: Meter) -> list[Event]:
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            events.append(draw(notes))
        else:
            count = draw(st.sampled_from([2, 3, 3, 5]))
            events += [
                Tuplet(count, default_into(count, meter), count),
                *draw(st.lists(notes, min_size=count, max_size=count)),
            ]
    return events


@st.composite
def _music(draw: st.DrawFn, meter: Meter) -> list[Event]:
    bars = draw(st.lists(_bar(meter), min_size=1, max_size=3))
    return [event for n, bar in enumerate(bars) for event in ([Bar("|"), *bar] if n else bar)]


@st.composite
def tunes(draw: st.DrawFn) -> Tune:
    """A tune in normal form with bars of any length."""
    meter = draw(st.sampled_from(METERS))
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["once", "twice", "endings"]))
        if kind != "once":
            events[-1:] = [] if events and events[-1] == Bar("||") else events[-1:]
            events.append(Bar("|:"))
        events += draw(_music(meter))
        if kind == "endings":
            events += [Bar("|1"), *draw(_music(meter)), Bar(":|2"), *draw(_music(meter))]
        events.append(Bar(":|") if kind == "twice" else Bar("||"))
    events[-1:] = [Bar("|]")] if events[-1] == Bar("||") else events[-1:]
    return Tune(meter, draw(keys), tuple(events))


def write_books(folder: Path) -> Path:
    """Writes books with enough different tunes that every part of the split has some and no token is rare."""
    notes = "CDEFGABc"

    def bar(n: int) -> str:
        return "".join(notes[(n >> shift) % 8] for shift in (0, 3, 6)) + "".join(notes[n * k % 8] for k in (3, 5, 7))

    tunes = [
        f"X:{n}\nT:{'abcdefgh'[n % 8]}{n}qu{'ijklmnop'[n // 8]}\nM:6/8\nL:1/8\nK:C\n"
        + "|: " + " | ".join(bar(97 * n + 31 * k * n + k) for k in range(8)) + " :|\n\n"
        for n in range(1, 64)
    ]  # fmt: skip
    (folder / "sub").mkdir()
    (folder / "sub" / "one.abc").write_text("".join(tunes[:30]), encoding="utf-8")
    (folder / "two.abc").write_text("".join(tunes[30:]), encoding="utf-8")
    return folder
