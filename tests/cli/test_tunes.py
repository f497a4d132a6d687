"""`gruve generate` with a model of tunes: complete ABC, keys, several tunes, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fake_server import FakeServer
from gruve.cli import main
from gruve.tune.parse import parse_tune

TUNE = "L:1/8\nM:4/4\nK:Cmaj\n|: CDEF GABc | c4 z4 :|\n"
Generate = Callable[..., int]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.reset(text=TUNE)
    server.tokenizer = "abc"
    yield server
    server.stop()


@pytest.fixture
def generate(fake: FakeServer) -> Generate:
    return lambda *arguments: main(["generate", "made-up", "--address", fake.address, *arguments])


def test_standard_output_is_complete_abc_with_the_key_last(
    generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--seed", "22", "--quiet") == 0
    assert capsys.readouterr().out.splitlines()[:9] == [
        "X:1",
        "T:made-up, seed 22",
        "R:reel",
        "N:made by gruve with made-up: seed 22",
        "N:model digest digest",
        "M:4/4",
        "L:1/8",
        "Q:1/2=90",
        "K:C",
    ]


def test_raw_prints_the_tokens_and_nothing_else(generate: Generate, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--raw", "--quiet") == 0
    assert capsys.readouterr() == (TUNE, "")


def test_several_tunes_are_a_book_and_have_a_seed_each(
    generate: Generate, fake: FakeServer, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [argument for name in ("a.abc", "a.mid", "a.svg") for argument in ("--out", str(tmp_path / name))]
    assert generate("--n", "2", "--seed", "7", "--title", "Mine", "--quiet", *outs) == 0
    book = capsys.readouterr().out
    assert [line for line in book.splitlines() if line[:2] in ("X:", "T:")] == ["X:1", "T:Mine 1", "X:2", "T:Mine 2"]
    assert book.count("\n\n") == 1
    assert [request.sampling.seed for request in fake.requests if hasattr(request, "sampling")] == [7, 8]
    assert {path.name for path in tmp_path.iterdir()} == {"a.abc", "a-1.mid", "a-2.mid", "a-1.svg", "a-2.svg"}
    assert (tmp_path / "a.abc").read_text() == book


def test_a_tune_is_written_as_notation_drawn_and_to_play(generate: Generate, tmp_path) -> None:
    paths = [tmp_path / "new" / name for name in ("tune.abc", "tune.svg", "tune.mid")]
    assert generate(*[argument for path in paths for argument in ("--out", str(path))], "--key", "G", "--quiet") == 0
    assert "\nK:G" in paths[0].read_text()
    assert paths[1].read_text().startswith(("<?xml", "<svg"))
    assert paths[2].read_bytes().startswith(b"MThd")


@pytest.mark.parametrize(
    ("key", "field", "told"),
    [
        ("G", "K:G", "the tune is in G major"),
        ("Bb", "K:Bb", "the tune is in Bb major"),
        ("G#", "K:Ab", "the tune is in Ab major; G# major would need more than seven sharps or flats"),
        ("Am", "K:A", "the tune is in A major; its mode is not the one that --key asks for, A minor"),
    ],
)
def test_the_key_is_the_root_asked_for_and_said(
    generate: Generate, capsys: pytest.CaptureFixture[str], key: str, field: str, told: str
) -> None:
    assert generate("--key", key) == 0
    out, err = capsys.readouterr()
    assert field in out.splitlines()
    assert told in err.splitlines()


def test_a_mode_that_is_asked_for_is_the_only_one_that_may_be_drawn(generate: Generate, fake: FakeServer) -> None:
    assert generate("--key", "Am", "--quiet") == 0
    assert dict(fake.requests[-1].sampling.logit_bias.biases) == {5: -100, 7: -100}


def test_a_mode_that_the_model_lacks_is_refused_before_anything_is_generated(
    generate: Generate, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--key", "Clyd") == 2
    assert capsys.readouterr().err == "gruve: --key asks for lyd; made-up writes maj, min, dor\n"
    assert not [request for request in fake.requests if hasattr(request, "sampling")]


def test_a_tune_that_breaks_the_rules_is_repaired_and_said_to_be(
    generate: Generate, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.text = TUNE.replace("c4 z4", "c4 (3z4").encode()
    fake.length = len(fake.text)
    assert generate() == 0
    out, err = capsys.readouterr()
    assert "the notation was repaired: " in err
    assert parse_tune(out).title == "made-up, seed 4711"


def test_a_text_that_is_no_tune_is_a_failure(
    generate: Generate, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.text = b"L:1/8\n"
    fake.length = len(fake.text)
    assert generate("--quiet") == 1
    assert "no tune was written" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--out", "/no/where/a.abc"), ("--key", "G"), ("--n", "2"), ("--raw",)])
def test_a_model_of_text_takes_no_flags_of_tunes(
    generate: Generate, fake: FakeServer, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    fake.tokenizer = "characters"
    assert generate(*arguments) == 2
    assert f"{arguments[0]} is for models of tunes; 'made-up' writes other text" in capsys.readouterr().err
