"""A gateway in front of the tests' server, and a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from http_gateway import RunningGateway
from requiring import need_program

PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def gateway(server) -> Iterator[RunningGateway]:
    running = RunningGateway(server.address)
    yield running
    running.close()


@pytest.fixture(scope="module")
def chromium():
    """A browser. While it runs, playwright's event loop counts as running, so other files must not inherit it."""
    need_program("chromium", "apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page whose scripts may not fail or break the policy."""
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    context.close()
    assert not errors
