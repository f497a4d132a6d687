"""The mkdocs hook: adds generated pages and the repository's own Markdown files to the site.

A page of `docs/` and a README elsewhere link to each other, and to files of the repository, by relative paths that work
where the repository is browsed. The site has the same layout, with `docs/` as its root, so only the links change. Files
that a page links to are copied into the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import commands_page
import errors_page
import keys_page
import metrics_page
import protocol_page

ROOT = Path(__file__).resolve().parents[2]
INCLUDED = ["CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "deploy/README.md"]
"""Markdown files outside `docs/` that are pages of the site; the cards of the models are too."""
GENERATED = {
    "reference/commands.md": commands_page.page,
    "reference/errors.md": errors_page.page,
    "reference/metrics.md": metrics_page.page,
    "reference/model-format.md": keys_page.model_format_page,
    "reference/protocol.md": protocol_page.page,
    "reference/training.md": keys_page.training_page,
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def included() -> list[str]:
    """The pages from outside `docs/`, as paths from the repository's root."""
    cards = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("models/*/README.md"))
    return [name for name in INCLUDED if (ROOT / name).exists()] + cards


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages, and the files that pages link to."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, name, content=page()))
    for name in included():
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for target in _repository_links(source_path(file.src_uri), file.content_string):
            if (ROOT / target).is_file() and files.get_file_from_path(site_path(target)) is None:
                files.append(File.generated(config, site_path(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' signature
    """Turns links between repository files into links between the site's files."""
    source = source_path(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        target, anchor = resolve(source, link)
        if target is None:
            return match[0]
        if (ROOT / target).is_dir():
            target = posixpath.join(target, "README.md")
        path = site_path(target)
        if files.get_file_from_path(path) is None:
            return text  # a folder without a page: the text stays, the link goes
        return f"{mark}[{text}]({posixpath.relpath(path, here or '.')}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(relink, part) for part in parts)


def source_path(src_uri: str) -> str:
    """Where a page of the site lies in the repository; generated pages count as pages of `docs/`."""
    return src_uri if src_uri in included() else posixpath.join("docs", src_uri)


def site_path(target: str) -> str:
    """Where a file of the repository lies in the site."""
    return target.removeprefix("docs/")


def resolve(source: str, link: str) -> tuple[str | None, str]:
    """The repository path that a link names, with its `#anchor`; None for an address or an anchor alone."""
    path, sharp, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None, ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), sharp + anchor


def _repository_links(source: str, markdown: str) -> list[str]:
    targets = (resolve(source, match[3])[0] for match in LINK.finditer(FENCE.sub("", markdown)))
    return [target for target in targets if target]
