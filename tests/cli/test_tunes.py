"""`gruve generate` with a model of tunes: complete ABC, keys, several tunes, files."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fake_server import TUNE, FakeServer
from gruve.cli import main
from gruve.cli.compose import Composer
from gruve.tune.parse import parse_tune

Generate = Callable[..., int]


@pytest.fixture
def generate(tunes: FakeServer) -> Generate:
    return lambda *arguments: main(["generate", "made-up", "--address", tunes.address, *arguments])


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


def test_a_version_of_a_model_of_tunes_writes_tunes_too(tunes: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "made-up@2", "--address", tunes.address, "--seed", "22", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("X:1\nT:made-up, seed 22\n")
    assert tunes.requests[-1].model == "made-up@2"


@pytest.mark.parametrize(
    ("flags", "recommended", "sent"),
    [
        ([], 0.8, 0.8),
        (["--raw"], 0.8, 0.8),
        (["--session", "new"], 0.8, 0.8),
        (["--temperature", "0"], 0.8, 0.0),
        ([], None, None),
        (["--session", "s1"], 0.8, None),
    ],
)
def test_the_temperature_that_the_model_recommends_is_sent_unless_another_one_holds(
    generate: Generate, tunes: FakeServer, flags: list[str], recommended: float | None, sent: float | None
) -> None:
    tunes.default_temperature = recommended
    if "s1" in flags:
        tunes.tokenizer = "characters"  # a tunes transcript spells no tune
    assert generate("--quiet", *flags) == 0
    sampling = next(request for request in tunes.requests if hasattr(request, "sampling")).sampling
    assert (sampling.temperature if sampling.HasField("temperature") else None) == (sent and pytest.approx(sent))


def test_raw_prints_the_tokens_and_nothing_else(generate: Generate, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--raw", "--quiet") == 0
    assert capsys.readouterr() == (TUNE, "")


def test_a_tune_that_cannot_be_read_does_not_cost_the_others(
    generate: Generate, tunes: FakeServer, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    tunes.blank_seeds = {8}
    book = tmp_path / "book.abc"
    assert generate("--n", "3", "--seed", "7", "--quiet", "--out", str(book)) == 1
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("X:")] == ["X:1", "X:3"]
    assert book.read_text().count("X:") == 2
    assert err.startswith("gruve: tune 2: the text is not a tune")
    tunes.blank_seeds = {7, 8}
    assert generate("--n", "2", "--seed", "7", "--quiet") == 1
    assert capsys.readouterr().err.count("the text is not a tune") == 2


def test_several_tunes_are_a_book_and_have_a_seed_each(
    generate: Generate, tunes: FakeServer, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [argument for name in ("a.abc", "a.mid", "a.svg") for argument in ("--out", str(tmp_path / name))]
    assert generate("--n", "2", "--seed", "7", "--title", "Mine", "--quiet", *outs) == 0
    book = capsys.readouterr().out
    assert [line for line in book.splitlines() if line[:2] in ("X:", "T:")] == ["X:1", "T:Mine 1", "X:2", "T:Mine 2"]
    assert book.count("\n\n") == 1
    assert [request.sampling.seed for request in tunes.requests if hasattr(request, "sampling")] == [7, 8]
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
        ("Am", "K:A", "the tune is in A major; its mode is not the one asked for, A minor"),
    ],
)
def test_the_key_is_the_root_asked_for_and_said(
    generate: Generate, capsys: pytest.CaptureFixture[str], key: str, field: str, told: str
) -> None:
    assert generate("--key", key) == 0
    out, err = capsys.readouterr()
    assert field in out.splitlines()
    assert told in err.splitlines()


def test_a_mode_that_is_asked_for_is_the_only_one_that_may_be_drawn(generate: Generate, tunes: FakeServer) -> None:
    assert generate("--key", "Am", "--quiet") == 0
    assert dict(tunes.requests[-1].sampling.logit_bias.biases) == {5: -100, 7: -100}


def test_so_is_the_mode_of_a_beginning_without_a_meter(generate: Generate, tunes: FakeServer) -> None:
    assert generate("K:Gm", "--quiet") == 0
    assert dict(tunes.requests[-1].sampling.logit_bias.biases) == {5: -100, 7: -100}


def test_a_mode_that_the_model_lacks_is_refused_before_anything_is_generated(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--key", "Clyd") == 2
    assert capsys.readouterr().err == "gruve: --key asks for lyd; made-up writes maj, min, dor\n"
    assert not [request for request in tunes.requests if hasattr(request, "sampling")]


def test_a_tune_that_breaks_the_rules_is_repaired_and_said_to_be(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tunes.text = TUNE.replace("c4 z4", "c4 (3z4").encode()
    tunes.length = len(tunes.text)
    assert generate() == 0
    out, err = capsys.readouterr()
    assert "the model's text was repaired: line 4, column 24: a bar line inside a tuplet" in err.splitlines()
    assert parse_tune(out).title == "made-up, seed 4711"


def test_a_text_that_is_no_tune_is_a_failure(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tunes.text = b"L:1/8\n"
    tunes.length = len(tunes.text)
    assert generate("--quiet") == 1
    assert "the text is not a tune" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--out", "/no/where/a.abc"), ("--key", "G"), ("--n", "2"), ("--raw",)])
def test_a_model_of_text_takes_no_flags_of_tunes(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    tunes.tokenizer = "characters"
    assert generate(*arguments) == 2
    assert f"{arguments[0]} is for models of tunes; 'made-up' writes other text" in capsys.readouterr().err


FAULTY = 'X:1\nT:t\nM:4/4\nL:1/8\nK:C\n"Am"ABcd efg?a|A7|]\n'


def test_check_says_what_is_wrong_with_line_and_column(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.abc"
    path.write_text(FAULTY)
    assert main(["tune", "check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        f"{path}:6:1: note: left out: chord symbols and annotations (1)",
        f"{path}:6:13: warning: cannot read '?a|A7|]'; the first character is passed over",
        f"{path}:6:16: warning: bar 2 has 7/8 of a whole note, not 1; its bar lines and rests are repaired",
    ]
    assert main(["tune", "check", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["column"] == 1


def test_fix_prints_the_tunes_written_right_and_leaves_the_file(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.abc"
    path.write_text(FAULTY.replace("A7", "A8"))
    assert main(["tune", "check", str(path), "--fix"]) == 0
    out, err = capsys.readouterr()
    assert out == "X:1\nT:t\nM:4/4\nL:1/8\nK:C\nABcd efga | A8 |]\n"
    assert "passed over" in err
    assert path.read_text() == FAULTY.replace("A7", "A8")
    fixed = tmp_path / "b.abc"
    fixed.write_text(out)
    assert main(["tune", "check", str(fixed)]) == 0
    assert capsys.readouterr() == ("", "")


def test_fix_says_what_it_could_not_write(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.abc"
    path.write_text("X:1\nK:C\n\nX:2\nT:t\nM:none\nK:C\nA\n")
    assert main(["tune", "check", str(path), "--fix"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("X:2\n")
    assert "gruve: 1 of 2 tunes could not be read, and are not written" in err


def test_a_beginning_in_another_key_goes_to_the_model_on_c_and_comes_back(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tunes.text = b"c4 z4:|"
    tunes.length = len(tunes.text)
    prompt = 'X:3\nT:Mine\nM:4/4\nL:1/8\nK:G\n|: "G"GABc defg | '
    assert generate(prompt) == 0
    assert tunes.requests[-1].text == "L:1/8\nM:4/4\nK:Cmaj\n|: CDEFGABc| "
    out, err = capsys.readouterr()
    assert "T:Mine" in out.splitlines()
    assert out.splitlines()[-2:] == ["K:G", "|: GABc defg | g4 z4 :|"]
    assert "the beginning: 6:4: note: left out: chord symbols and annotations (1)" in err.splitlines()


def test_what_is_assumed_of_a_whole_beginning_is_said_without_a_place(
    generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("K:G\nGAB") == 0
    assert "the beginning: warning: no meter; it is taken for 4/4" in capsys.readouterr().err.splitlines()


def test_a_beginning_that_the_model_cannot_read_is_shown_as_it_would_read_it(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    tunes.faults = [("", 0), ("UNKNOWN_CHARACTER", 0)]  # the first call asks for the models
    assert generate("M:7/8") == 2
    told = "gruve: in the form that made-up reads, the beginning is 'L:1/8\\nM:7/8\\n': "
    assert capsys.readouterr().err.startswith(told)


def test_a_beginning_in_another_mode_than_the_key_asked_for_is_refused(
    generate: Generate, tunes: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("M:4/4\nL:1/8\nK:G\nGABc", "--key", "Am") == 2
    assert "--key asks for A minor; the beginning is in G major" in capsys.readouterr().err
    assert not [request for request in tunes.requests if hasattr(request, "sampling")]


def test_a_raw_beginning_is_passed_on_as_it_is(generate: Generate, tunes: FakeServer) -> None:
    assert generate("K:G\nG", "--raw", "--quiet") == 0
    assert tunes.requests[-1].text == "K:G\nG"


@pytest.mark.parametrize(("chunks", "written"), [(1, ""), (9, "X:1\n")])
def test_a_tune_that_is_interrupted_is_written_if_it_has_a_note(
    generate: Generate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chunks: int,
    written: str,
) -> None:
    shown: list[str] = []

    def interrupt(_: object, text: str, __: object) -> None:
        shown.append(text)
        if len(shown) == chunks:
            raise KeyboardInterrupt

    monkeypatch.setattr(Composer, "_show", interrupt)
    assert generate() == 130
    said = capsys.readouterr()
    assert said.out[:4] == written
    assert "cancelled" in said.err
    assert "gruve:" not in said.err
