"""A gateway in front of the tests' server, and a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from http_gateway import RunningGateway
from requiring import need_program

MODELS = Path(__file__).parents[2] / "models"
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def gateway(server) -> Iterator[RunningGateway]:
    running = RunningGateway(server.address)
    yield running
    running.close()


@pytest.fixture(scope="module")
def folk_and_tiny(tmp_path_factory) -> Path:
    """A repository with a model of tunes and one of texts."""
    folder: Path = tmp_path_factory.mktemp("models")
    for name in ("folk", "tiny"):
        shutil.copytree(MODELS / name, folder / name)
    return folder


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
