"""The notation on the gateway's page, in a real browser: what grows, what is played, and what can be downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gruve.tune.generated import read_generated
from gruve.tune.parse import parse_tune
from gruve.tune.play import midi_file, played
from gruve.tune.score import WHOLE, Note
from gruve.tune.write import complete, write_tune
from http_gateway import RunningGateway

SEED = "16"
pytestmark = pytest.mark.slow


@pytest.fixture
def url(start, folk_and_tiny):
    running = RunningGateway(start(models=folk_and_tiny).address, drain_s=1.0)
    yield running.url
    running.close()


@pytest.fixture
def page(page):
    """A page that may write nothing to the console either."""
    said = []
    page.on("console", lambda message: said.append(message.text))
    yield page
    assert not said


def write(page, url, model="folk", meter="", mode="", **fields):
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    page.select_option("#model", model)
    if meter or mode:
        page.select_option("#meter", meter)
        page.select_option("#mode", mode)
    for name, value in {"seed": SEED, "rate": "", **fields}.items():
        page.fill(f"#{name}", value)
    page.click("#write")


def done(page):
    """Waits for the end and for the last drawing; returns the text."""
    page.wait_for_selector("#write:not([disabled])")
    drawn(page)
    return page.text_content("#output")


def drawn(page):
    page.wait_for_selector("#tune[aria-busy=false]")


def notes(page):
    return page.locator("#paper .abcjs-note").count()


def written_notes(text):
    return sum(isinstance(event, Note) and event.pitch is not None for event in read_generated(text)[0].events)


def test_notes_appear_while_the_model_writes_and_in_the_end_are_those_of_the_tune(url, page):
    write(page, url, rate="40")
    page.wait_for_function("() => document.querySelectorAll('#paper .abcjs-note').length > 5")
    assert page.text_content("#status").startswith("Writing")
    growing = notes(page)
    text = done(page)
    assert growing < notes(page) == written_notes(text)


@pytest.mark.parametrize(
    ("meter", "mode", "begins"),
    [("9/8", "min", r"L:1/8\nM:9/8\nK:Cmin\n"), ("3/4", "", r"L:1/8\nM:3/4\nK:"), ("", "mix", r"L:.*\nM:.*\nK:Cmix\n")],
)
def test_a_tune_has_the_meter_and_the_mode_that_were_chosen(url, page, meter, mode, begins):
    write(page, url, meter=meter, mode=mode)
    assert re.match(begins, done(page))


def test_a_beginning_may_be_any_abc_and_its_key_is_that_of_the_notation(url, page):
    abc = 'X:1\nT:The Lark\nM:6/8\nL:1/8\nK:F#m\n|: "F#m"F2A c2f|'
    write(page, url, beginning=abc, length="60")
    assert done(page).startswith("L:1/8\nM:6/8\nK:Cmin\n|: C2EG2c|")
    assert page.locator("#meter:disabled, #mode:disabled").count() == 2
    assert page.input_value("#root") == "F#"
    with page.expect_download() as saved:
        page.click("#save-abc")
    written = Path(saved.value.path()).read_text()
    assert "T:The Lark\n" in written
    assert "K:F#m\n" in written


@pytest.mark.parametrize("seed", ["1", "2", "3", "21"])
def test_the_page_plays_what_the_midi_file_has(url, page, seed):
    write(page, url, seed=seed)
    tune = complete(read_generated(done(page))[0])
    page.select_option("#root", "C")
    drawn(page)
    heard = page.evaluate("() => import('/page.js').then(({ notation }) => notation.sounding())")
    second = float(WHOLE / 4 * tune.tempo.quarters_per_minute / 60)
    expected = [(sound.start / second, sound.midi % 12) for sound in played(tune)]
    assert [each["midi"] % 12 for each in heard] == [midi for _, midi in expected]
    assert [each["at"] for each in heard] == pytest.approx([at for at, _ in expected], abs=0.01)


def test_the_sound_begins_marks_its_note_and_stops(url, page):
    write(page, url)
    done(page)
    page.click("#play")
    page.wait_for_selector("#paper .sounding")
    assert page.text_content("#play") == "Stop"
    page.click("#play")
    assert page.locator("#paper .sounding").count() == 0
    assert page.text_content("#play") == "Play"


def test_the_files_are_those_of_the_command_line(url, page, tmp_path):
    write(page, url)
    tune = parse_tune(write_tune(complete(read_generated(done(page))[0])))
    page.select_option("#root", "C")
    drawn(page)
    files = {}
    for kind in ("abc", "midi", "svg"):
        with page.expect_download() as downloading:
            page.click(f"#save-{kind}")
        files[kind] = Path(downloading.value.path()).read_bytes()
        assert downloading.value.suggested_filename.startswith("folk-seed-16.")
    saved = parse_tune(files["abc"].decode())
    assert (saved.title, len(played(saved))) == ("folk, seed 16", len(played(tune)))
    assert "temperature 0.9" in files["abc"].decode()
    assert files["midi"] == midi_file(saved)
    assert files["svg"].startswith(b"<svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_notes_can_be_read_on_a_phone_in_both_colour_schemes(url, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    write(page, url)
    text = done(page)
    assert notes(page) == written_notes(text)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    note, ink = page.evaluate(
        "() => [getComputedStyle(document.querySelector('#paper .abcjs-note path')).fill,"
        " getComputedStyle(document.body).color]"
    )
    assert note == ink


def test_a_long_title_fits_on_a_phone(url, page):
    page.set_viewport_size({"width": 320, "height": 800})
    write(page, url, seed="10916585283496183653")
    done(page)
    left, right, end = page.evaluate(
        """[".abcjs-title", "svg"].map((name) => document.querySelector(`#paper ${name}`).getBoundingClientRect())
        .reduce((title, svg) => [title.left - svg.left, title.right - svg.left, svg.width])"""
    )
    assert (left >= -1, right <= end + 1) == (True, True), (left, right, end)


def test_a_stopped_tune_and_one_without_its_end_are_drawn(url, page):
    write(page, url, rate="40")
    page.wait_for_function("() => document.querySelectorAll('#paper .abcjs-note').length > 5")
    page.click("#stop")
    assert written_notes(done(page)) == notes(page)
    for length in ("15", "16", "17", "18", "19", "20"):
        write(page, url, length=length)
        assert written_notes(done(page)) == notes(page)


def test_a_wild_tune_breaks_nothing(url, page):
    write(page, url, temperature="2.5", length="300")
    assert written_notes(done(page)) == notes(page)


def test_a_text_has_no_notation(url, page):
    write(page, url)
    done(page)
    write(page, url, model="tiny", length="40")
    page.wait_for_selector("#status:has-text('Done')")
    assert page.is_hidden("#tune")
    assert page.text_content("#output-heading") == "Text"


def test_the_notation_loads_nothing_from_elsewhere(url, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    write(page, url)
    done(page)
    page.click("#play")
    page.wait_for_selector("#paper .sounding")
    page.click("#play")
    assert [each for each in asked if not each.startswith(url)] == []
