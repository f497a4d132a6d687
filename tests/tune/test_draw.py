"""Notation by verovio, in a child process that may die alone."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from gruve.errors import TuneError
from gruve.tune.draw import MAX_ABC_CHARACTERS, draw, engraving_warnings
from gruve.tune.parse import parse_tune
from gruve.tune.score import Key
from gruve.tune.tokens import detokenize
from gruve.tune.transpose import to_key
from gruve.tune.write import write_tune
from tunes import abc, kept


def drawn(music: str) -> str:
    return draw(write_tune(parse_tune(abc(music)))).svg


def test_a_tune_becomes_one_page(capfd: pytest.CaptureFixture[str]) -> None:
    drawing = draw(write_tune(detokenize(kept()[0].tokens), title="Fish & <Chips>, 5 %"))
    assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")
    assert "Fish &amp; &lt;Chips&gt;, 5 %<" in drawing.svg
    assert drawing.log == ()
    assert capfd.readouterr() == ("", "")


def test_the_same_tune_is_the_same_picture_whatever_was_drawn_before() -> None:
    first = drawn("ABcd efga|1 A8:|2 B8|]")
    drawn("efga")
    assert drawn("ABcd efga|1 A8:|2 B8|]") == first


@pytest.mark.parametrize("bars", [1, 3_000])
def test_a_picture_is_black_on_white_so_that_a_dark_page_shows_it(bars: int) -> None:
    root = ElementTree.fromstring(drawn("ABcd efga|" * bars))
    background = root[0]
    assert background.tag.endswith("rect")
    assert background.attrib == {"width": "100%", "height": "100%", "fill": "white"}
    assert sum(rect.get("fill") == "white" for rect in root.iter() if rect.tag.endswith("rect")) == 1


def test_first_and_second_endings_are_drawn() -> None:
    assert drawn("|:A8|1B8|c8:|2d8||e8|]").count('class="ending') == 2
    assert drawn("|:A8|B8:|").count('class="ending') == 0


def test_a_tuplet_is_drawn_over_its_own_notes_alone() -> None:
    groups = [g for g in ElementTree.fromstring(drawn("A2B2 cd(3efgA|]")).iter() if g.get("class") == "tuplet"]
    assert [sum(g.get("class") == "note" for g in group.iter()) for group in groups] == [3]


def test_a_tune_longer_than_the_tallest_page_is_one_picture() -> None:
    svg = drawn("ABcd efga|" * 3_000)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg.count("<svg y=") > 1


def test_the_log_says_what_verovio_complained_of() -> None:
    assert any("Title" in line for line in draw(abc("A8|]")).log)


def test_what_is_no_tune_is_refused() -> None:
    with pytest.raises(TuneError, match="no K: field"):
        draw("")


def test_a_crash_costs_only_its_own_tune() -> None:
    good = write_tune(detokenize(kept()[0].tokens))
    assert [bool(log) for log in engraving_warnings([good, "", good])] == [False, True, False]


def test_too_long_a_tune_is_refused_before_anything_starts() -> None:
    with pytest.raises(TuneError, match="at most"):
        engraving_warnings(["A" * (MAX_ABC_CHARACTERS + 1)])


def test_every_kept_tune_is_engraved_in_g_without_a_warning() -> None:
    tunes = [write_tune(to_key(detokenize(one.tokens), Key(4, 0, "maj"))) for one in kept()]
    assert not [log for log in engraving_warnings(tunes) if log]
