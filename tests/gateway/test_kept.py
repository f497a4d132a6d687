"""On the gateway's page, in a real browser: a link writes the same piece again, and kept pieces stay in the browser."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlencode, urlparse

import pytest

from gruve.tune.books import read_books
from http_gateway import gateway_url

pytestmark = pytest.mark.slow


@pytest.fixture
def url(start, folk_and_tiny):
    with gateway_url(start(models=folk_and_tiny).address) as url:
        yield url


def write(page, url, model="folk", **fields):
    """Writes a piece to its end."""
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    page.select_option("#model", model)
    root = fields.pop("root", None)
    for name in ("meter", "mode"):
        if name in fields:
            page.select_option(f"#{name}", fields.pop(name))
    for name, value in {"rate": "", **fields}.items():
        page.fill(f"#{name}", value)
    page.click("#write")
    done(page)
    if root is not None:
        page.select_option("#root", root)
    return done(page)


def done(page):
    page.wait_for_selector("#keep:not([disabled])")
    page.wait_for_selector("#tune[aria-busy=false]", state="attached")
    return page.text_content("#output")


def status(page, contains):
    page.wait_for_function("(part) => document.getElementById('status').textContent.includes(part)", arg=contains)


def fields_of(link):
    return {name: value for name, [value] in parse_qs(urlparse(link).fragment).items()}


def keep(page, pieces):
    """Keeps what is shown, after which there are so many pieces."""
    page.click("#keep")
    page.wait_for_function("(n) => document.querySelectorAll('#kept-pieces li').length === n", arg=pieces)
    assert "Kept in this browser" in page.text_content("#status")


def pieces(page):
    return page.locator("#kept-pieces .title").all_text_contents()


@pytest.mark.parametrize(
    "fields",
    [
        {"meter": "6/8", "mode": "dor", "root": "D", "temperature": "0.8"},
        {"beginning": "X:1\nT:Mine\nM:4/4\nK:F#m\n|: f2 cf", "seed": "7"},
        {"model": "tiny", "beginning": "ROMEO:\nO, ", "length": "60"},
    ],
)
def test_a_link_writes_the_same_piece_again(url, page, fields):
    whole = write(page, url, **fields)
    link, root = page.url, page.input_value("#root")
    assert re.search(r"seed=\d+", link)  # also that of a seed that the server drew
    page.goto("about:blank")
    page.goto(link)
    assert done(page) == whole
    assert page.input_value("#root") == root
    assert page.url == link
    assert page.input_value("#seed") == fields_of(link)["seed"]


def test_a_link_followed_on_the_page_itself_and_one_of_a_stopped_piece(url, page):
    whole = write(page, url, seed="3")
    link = page.url
    page.fill("#seed", "4")
    page.fill("#rate", "40")
    page.click("#write")
    page.wait_for_function("() => document.getElementById('written').textContent.length > 60")
    page.click("#stop")
    stopped, stopped_link = done(page), page.url
    assert fields_of(stopped_link)["seed"] == "4"
    page.fill("#rate", "")
    page.evaluate("(link) => { location.href = link; }", link)
    page.wait_for_function("(text) => document.getElementById('output').textContent === text", arg=whole)
    done(page)
    page.evaluate("(link) => { location.href = link; }", stopped_link)
    page.wait_for_function("(text) => document.getElementById('output').textContent === text", arg=stopped)


def test_a_piece_whose_temperature_was_changed_has_no_link(url, page):
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    page.select_option("#model", "tiny")
    page.fill("#length", "150")
    page.fill("#rate", "60")
    page.click("#write")
    page.wait_for_function("() => document.getElementById('written').textContent.length > 5")
    page.wait_for_function("() => location.hash")
    page.fill("#temperature", "0")
    page.press("#temperature", "Tab")
    done(page)
    assert "#" not in page.url
    assert page.is_disabled("#copy-link")


def test_a_link_says_if_the_model_has_changed(url, page):
    whole = write(page, url, model="tiny", length="30", seed="2")
    fields = fields_of(page.url)
    page.goto("about:blank")
    page.goto(f"{url}/#{urlencode({**fields, 'digest': 'f' * 64})}")
    assert done(page) == whole
    status(page, "The model has changed since the link was made")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "other"}, "no model 'other'"),
        ({"temperature": "hot"}, "its temperature cannot be 'hot'"),
        ({"length": "99999999"}, "its length cannot be '99999999'"),
        ({"root": "<b>"}, "its root cannot be '<b>'"),
        ({"meter": "13/8"}, "its meter cannot be '13/8'"),
        ({"seed": "-1"}, "its seed cannot be '-1'"),
    ],
)
def test_a_link_that_cannot_be_followed_is_said_in_words(url, page, change, reason):
    page.goto(f"{url}/#{urlencode({'model': 'folk', 'seed': '1', **change})}")
    status(page, reason)
    assert page.text_content("#output") == ""


def test_kept_pieces_stay_and_are_shown_without_the_server(url, page, tmp_path):
    tune = write(page, url, seed="3", root="A")
    keep(page, 1)
    keep(page, 1)  # it is there already
    other = write(page, url, model="tiny", beginning="JULIET:\n", seed="5", length="40")
    keep(page, 2)
    third = write(page, url, seed="4", root="D")
    keep(page, 3)
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    assert pieces(page) == ["folk, seed 4", "tiny, seed 5", "folk, seed 3"]
    with page.expect_download() as download:
        page.click("#save-book")
    book = tmp_path / "books" / "tunes.abc"
    download.value.save_as(book)
    assert "of 2 tunes" in read_books(book.parent).summary()
    numbers_and_keys = re.findall(r"^(?:X:\d+|K:[A-G])", book.read_text(), re.MULTILINE)
    assert numbers_and_keys == ["X:1", "K:A", "X:2", "K:D"]  # the oldest first
    page.wait_for_load_state("networkidle")
    page.route("**/StartConversation", lambda route: route.abort())  # no model is asked
    for title, text in {"folk, seed 3": tune, "tiny, seed 5": other, "folk, seed 4": third}.items():
        page.click(f"#kept-pieces >> text={title}")
        page.wait_for_selector("#tune[aria-busy=false]", state="attached")
        assert page.text_content("#output") == text
        assert page.is_visible("#paper svg") == title.startswith("folk")
        assert fields_of(page.url)["seed"] == title[-1]
    assert page.text_content("#given") == ""
    page.click("#kept-pieces li:nth-child(2) >> text=Remove")
    assert pieces(page) == ["folk, seed 4", "folk, seed 3"]


def test_a_piece_becomes_the_beginning_of_the_next(url, page):
    tune = write(page, url, seed="3", root="A")
    page.click("#edit")
    status(page, "It is the beginning now")
    beginning = page.input_value("#beginning")
    assert re.findall(r"^K:A.*$", beginning, re.MULTILINE)
    assert not re.search(r"^N:", beginning, re.MULTILINE)
    shorter = "|".join(beginning.split("|")[:5]) + "|"  # the reader takes the end away
    page.fill("#beginning", shorter)
    page.fill("#seed", "9")
    page.click("#write")
    page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Done')")
    another = done(page)
    bars = page.text_content("#given")
    # The gateway chooses the octave by the notes that are left.
    assert re.sub("[,']", "", tune).upper().startswith(re.sub("[,']", "", bars).upper().rstrip("| "))
    assert bars.count("|") >= 4
    assert another != tune
    assert page.input_value("#root") == "A"
    text = write(page, url, model="tiny", beginning="ROMEO:\n", length="30")
    page.click("#edit")
    page.wait_for_function("(text) => document.getElementById('beginning').value === text", arg=text)


def test_a_full_or_strange_storage_is_no_end(url, page):
    page.goto(url)
    page.evaluate("localStorage.setItem('gruve.kept', '{not json')")
    write(page, url, model="tiny", length="20")
    assert pieces(page) == []
    page.evaluate("for (let n = 1 << 22; n; n >>= 1) try { localStorage.setItem('x' + n, 'x'.repeat(n)) } catch {}")
    page.click("#keep")
    status(page, "storage for this page is full")
    assert pieces(page) == []
