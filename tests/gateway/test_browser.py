"""A real browser: connect-web from another origin in all four forms, and the gateway's own page."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest

from commands import started
from conversing import LONG, PROMPT, START, alone, plain
from gruve.bench.chaos.replicas import free_port
from gruve.client import Client
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from http_gateway import gateway_url
from requiring import need, need_program
from server_process import Process
from serving import PATIENCE_S, until

BROWSER = Path(__file__).parent / "browser"
PROTO = Path(__file__).parents[2] / "proto"
FORMS = ["connect json", "connect binary", "grpc-web json", "grpc-web binary"]
FIELDS = {"seed": 5, "maxTokens": 40}
pytestmark = pytest.mark.slow


# ---- connect-web, from another origin


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A folder with a page that has connect-web and the scenarios, bundled."""
    need_program("npm", "apt-get install npm")
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(BROWSER, folder, dirs_exist_ok=True)
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    need("npm", present=done.returncode == 0, install=f"npm could not install: {done.stderr[-300:]}")
    esbuild = ["node_modules/.bin/esbuild", "scenarios.js", "--bundle", "--outfile=bundle.js", "--log-level=error"]
    subprocess.run(esbuild, cwd=folder, check=True, timeout=60)
    (folder / "index.html").write_text("<!doctype html><title>test</title><script src=bundle.js></script>")
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", "--include_imports"]
    out = f"--descriptor_set_out={folder / 'descriptors.binpb'}"
    subprocess.run([*protoc, out, "gruve/v1/generation.proto"], check=True, timeout=60)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def origin(bundle):
    """The origin that serves the page."""
    handler = functools.partial(Quiet, directory=bundle)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


@pytest.fixture(scope="module")
def url(server, origin):
    with gateway_url(server.address, allowed_origins=(origin,)) as url:
        yield url


@pytest.fixture
def scenario(page, origin):
    """Runs a scenario in the browser."""
    page.goto(origin)

    def run(name, *arguments):
        return page.evaluate("([name, ...rest]) => window.scenarios[name](...rest)", [name, *arguments])

    return run


@pytest.mark.parametrize("form", FORMS)
def test_connect_web_streams_steers_cancels_and_resumes(server, url, scenario, form):
    whole = alone(server)
    assert scenario("streamed", form, url, FIELDS) == {"tokens": whole.tokens, "text": whole.text}
    steered = scenario("steered", form, url, FIELDS)
    encode = server.host("tiny").model.tokenizer.encode
    expected = plain(server, [("rewind", START + 3, {"seed": 8})], {"seed": 5}, 40, encode)
    assert steered == {"tokens": expected[START:], "position": START + 3}
    resumed = scenario("cancelledAndResumed", form, url, FIELDS)
    assert resumed["code"] == "Canceled"
    assert 5 <= resumed["before"] < 40
    assert resumed["tokens"] == whole.tokens


@pytest.mark.parametrize("form", FORMS)
def test_connect_web_has_the_servers_error_with_its_reason(url, scenario, form):
    failure = scenario("refused", form, url)
    assert (failure["code"], failure["details"]) == ("NotFound", ["google.rpc.ErrorInfo"])
    assert "'none' in no session" in failure["message"]


def test_a_browser_lets_no_page_of_an_origin_that_is_not_listed_call(server, scenario):
    with gateway_url(server.address) as closed:
        assert scenario("refused", "connect json", closed)["code"] == "Unknown"


# ---- EventSource


LISTEN = """(fields) => {
  window.heard = {seeds: [], tokens: [], text: '', failed: null};
  const source = new EventSource('/v1/generate?' + fields);
  const on = (name, then) => source.addEventListener(name, (event) => then(JSON.parse(event.data)));
  on('start', (start) => heard.seeds.push(start.seed));
  on('message', (part) => { heard.tokens.push(...part.token_ids); heard.text += part.text; });
  on('failed', (error) => { heard.failed = error; source.close(); });
}"""
ENDLESS = {"model": "tiny", "prompt": PROMPT, "max_tokens": 65_536, "ignore_eos": "true", "max_tokens_per_second": 100}
"""A stream that no test waits for the end of. It has no seed, so the ids of its events must carry the drawn one."""


def heard(page, connections, tokens):
    """What the page has heard, once that is more than `tokens` tokens over at least so many connections."""
    enough = "([n, m]) => heard.failed || heard.seeds.length >= n && heard.tokens.length > m"
    page.wait_for_function(enough, arg=[connections, tokens], timeout=PATIENCE_S * 1_000)
    found = page.evaluate("heard")
    assert found["failed"] is None
    return found


def test_an_event_source_goes_on_at_the_next_token_after_a_killed_gateway_and_a_killed_server(tiny_repository, page):
    port, http_port = str(free_port()), str(free_port())
    run_gateway = ("gateway", "--address", f"127.0.0.1:{port}", "--port", http_port)
    with Process(tiny_repository, "--port", port) as server, started(*run_gateway) as gateway:
        assert server.line
        assert gateway.stdout.readline()
        page.goto(f"http://127.0.0.1:{http_port}/health")
        page.evaluate(LISTEN, urlencode(ENDLESS))
        before = heard(page, 1, 10)
        gateway.send_signal(signal.SIGKILL)
        gateway.wait(PATIENCE_S)
        server.signal(signal.SIGKILL)
        server.end()
    with started(*run_gateway) as gateway:
        with page.expect_response("**/v1/generate?*", timeout=PATIENCE_S * 1_000) as answer:
            assert gateway.stdout.readline()
        assert answer.value.status == 200  # no server runs, and EventSource gives up at any other status
        with Process(tiny_repository, "--port", port) as server:
            assert server.line
            heard(page, 2, len(before["tokens"]) + 20)
            server.signal(signal.SIGKILL)
            server.end()
            before = page.evaluate("heard")
            with Process(tiny_repository, "--port", port) as again, Client(f"127.0.0.1:{port}") as client:
                assert again.line
                found = heard(page, 2, len(before["tokens"]) + 100)
                options = {"seed": found["seeds"][0], "max_tokens": len(found["tokens"]), "ignore_eos": True}
                whole = client.generate(PROMPT, model="tiny", **options)
                assert (whole.text(), set(found["seeds"])) == (found["text"], {options["seed"]})
                assert found["tokens"] == client.tokenize(found["text"], model="tiny")


# ---- the page


def write(page, url, **fields):
    """Opens the page, fills the form in and begins to write."""
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    page.select_option("#model", "tiny")
    for name, value in {"beginning": PROMPT, "seed": "5", "temperature": "1", "rate": "", **fields}.items():
        page.fill(f"#{name}", value)
    page.click("#write")


def text(page):
    return page.text_content("#output")


def status(page, contains):
    page.wait_for_function("(part) => document.getElementById('status').textContent.includes(part)", arg=contains)


def test_the_page_writes_what_the_server_generates(server, url, page):
    write(page, url, length="40")
    status(page, "40 tokens, seed 5")
    assert text(page) == PROMPT + alone(server).text
    assert page.text_content("#given") == PROMPT


def test_the_page_pauses_continues_and_stops(server, url, page):
    write(page, url, length=str(LONG), rate="40")
    page.wait_for_function("(n) => document.getElementById('output').textContent.length > n", arg=len(PROMPT) + 5)
    page.click("#pause")
    status(page, "Paused")
    until(lambda: server.host("tiny").engine.load == 0)
    held = text(page)
    page.click("text=Continue")
    page.wait_for_function("(n) => document.getElementById('output').textContent.length > n", arg=len(held) + 5)
    page.click("#stop")
    status(page, "you stopped it")
    assert (PROMPT + alone(server, max_tokens=LONG).text).startswith(text(page))
    assert text(page).startswith(held)


def test_the_page_goes_on_at_the_next_token_after_its_connection_was_lost(server, page):
    with gateway_url(server.address) as first:
        port = int(first.rpartition(":")[2])
        write(page, first, length="200", rate="80")
        page.wait_for_function("(n) => document.getElementById('output').textContent.length > n", arg=len(PROMPT) + 5)
    with gateway_url(server.address, port=port):
        status(page, "200 tokens, seed 5")
    assert text(page) == PROMPT + alone(server, max_tokens=200).text


def test_a_changed_temperature_steers_what_is_being_written(server, url, page):
    write(page, url, length="200", rate="60")
    page.wait_for_function("(n) => document.getElementById('output').textContent.length > n", arg=len(PROMPT) + 5)
    page.fill("#temperature", "0")
    page.press("#temperature", "Tab")
    status(page, "200 tokens, seed 5")
    warm = PROMPT + alone(server, max_tokens=200).text
    assert text(page) != warm
    assert text(page)[: len(PROMPT) + 5] == warm[: len(PROMPT) + 5]


def test_the_page_asks_for_a_key_and_keeps_it_to_itself(start, page, tmp_path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ann", "ann")
    with gateway_url(start(access=AccessConfig(keys=keys)).address) as url:
        page.goto(url)
        status(page, "asks for an API key")
        page.fill("#key", f"{key}x")
        page.press("#key", "Tab")
        status(page, "refuses this API key")
        page.fill("#key", key)
        page.press("#key", "Tab")
        page.wait_for_selector("#write:not([disabled])")
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert key not in kept
        page.reload()
        status(page, "asks for an API key")


def test_a_refused_beginning_is_said_in_words(url, page):
    write(page, url, beginning="日")
    status(page, "'日'")
    assert page.is_enabled("#write")


def test_a_seed_that_is_too_large_is_refused_before_it_is_sent(url, page):
    write(page, url, seed=str(2**64))
    assert page.eval_on_selector("#seed", "(field) => field.validationMessage") == f"A seed is at most {2**64 - 1}."
    assert text(page) == ""


def test_the_page_waits_for_a_server_to_list_its_models(tiny_repository, page):
    port = free_port()
    with gateway_url(f"127.0.0.1:{port}") as url:
        page.goto(url)
        status(page, "Trying again")
        with Process(tiny_repository, "--port", str(port)) as server:
            assert server.line
            page.wait_for_selector("#write:not([disabled])")
            status(page, "Press Write")


def test_a_phone_shows_the_buttons_without_scrolling(chromium, url):
    context = chromium.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    box = page.locator("#write").bounding_box()
    assert box["y"] + box["height"] <= 800
    context.close()


@pytest.mark.parametrize("width", [320, 1_280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_screen_and_every_field_has_a_label(chromium, url, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate("[...document.querySelectorAll('input,select,textarea')].filter((e) => !e.labels.length).length")
        == 0
    )
    ratios = page.evaluate(CONTRAST)
    assert min(ratios.values()) >= 4.5, ratios
    context.close()


CONTRAST = """() => {
  const light = (colour) => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.includes("rgba(0, 0, 0, 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.querySelectorAll("p, label, h1, h2, legend, summary, #write, #given")) {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    found[element.tagName + "#" + element.id] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return found;
}"""
"""The contrast of each text with what lies behind it (WCAG 2.2; 4.5 for ordinary text)."""


def test_the_page_loads_nothing_from_elsewhere(url, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#write:not([disabled])")
    assert {re.match(r"https?://[^/]+", each).group() for each in asked} == {url}
