"""The documentation builds, every link leads somewhere, and every flag, metric, error and key is explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import commands_page
import errors_page
import keys_page
import metrics_page

ROOT = Path(__file__).resolve().parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
GENERATED = {"commands.md", "errors.md", "metrics.md", "model-format.md", "protocol.md", "training.md"}
"""Pages of docs/reference/ that exist only in a build."""


class Page(HTMLParser):
    """The links of a page, the files it loads, and its anchors."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = {name: value or "" for name, value in attrs}
        self.anchors |= {at[name] for name in ("id", "name") if name in at}
        if tag == "a" and "href" in at:
            self.links.append(at["href"])
        if "src" in at:
            self.loaded.append(at["src"])
        if tag == "link" and at.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(at["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """Every page of a strict build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "GRUVE_PORT": "7"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {path: Page(path.read_text()) for path in folder.rglob("*.html")}


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(site):
    dead = []
    for path, page in site.items():
        for link in (part for part in page.links if not urlsplit(part).scheme and path.name != "404.html"):
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and target in site and anchor not in site[target].anchors):
                dead.append(f"{path.name}: {link}")
    assert len(site) > 20
    assert dead == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = {link for page in site.values() for link in page.loaded}
    assert len(loaded) > 5
    assert [link for link in loaded if urlsplit(link).netloc] == []


def markdown_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_markdown_file_leads_to_a_file(path):
    links = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", path.read_text()))]
    targets = [(path.parent / link).resolve() for link in links if link and not urlsplit(link).scheme]
    made = {(ROOT / "docs" / "reference" / name).resolve() for name in GENERATED}
    assert [target for target in targets if not target.exists() and target not in made] == []


def test_operating_explains_every_error():
    reasons = errors_page.reasons()
    assert len(reasons) > 20
    assert [reason for reason in reasons if f"`{reason}`" not in OPERATING] == []


def test_operating_explains_every_metric_of_gruve():
    names = [re.search(r"`(\w+)`", row)[1] for row in metrics_page.rows()]
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in OPERATING] == []


def test_operating_explains_every_flag_of_the_server():
    serve = commands_page.commands(commands_page.parser())["serve"]
    flags = [option for action in serve._actions for option in action.option_strings if option.startswith("--")]
    assert len(flags) > 15
    assert [flag for flag in flags if flag != "--help" and f"`{flag}`" not in OPERATING] == []


def test_the_quick_start_names_every_part_that_a_user_can_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "quick-start.md").read_text(), re.MULTILINE))
    assert parts == project["optional-dependencies"].keys() - {"dev", "docs"}


def test_every_key_of_a_configuration_is_explained():
    for page in (keys_page.training_page(), keys_page.model_format_page()):
        rows = re.findall(r"^\| `.*", page, re.MULTILINE)
        assert len(rows) > 10
        assert [row for row in rows if row.endswith("|  |")] == []


def test_every_number_of_a_training_configuration_has_its_bounds():
    numbers = re.findall(r"^\| `(\w+)` \| (?:int|float) \|[^|]*\| (.*) \|$", keys_page.training_page(), re.MULTILINE)
    assert len(numbers) > 25
    assert [name for name, text in numbers if not re.search(r"\d to |[Aa]t least \d|above \d", text)] == []
