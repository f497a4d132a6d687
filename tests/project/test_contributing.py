"""Every path and every name in CONTRIBUTING exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "service" / "gruve"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL))
PATH = re.compile(r"[\w./-]+(\.(py|cpp|h|md|txt|proto|json|toml)|/)")
NAME = re.compile(r"_?[A-Za-z]\w*(\._?[A-Za-z]\w*)*")
WORDS = {path.stem for path in SOURCE.iterdir()}
"""The rooms."""


def source() -> str:
    files = [
        path for kind in ("*.py", "*.h", "*.cpp") for path in sorted(SOURCE.rglob(kind)) if path.parent.name != "v1"
    ]
    return "\n".join(path.read_text() for path in files + sorted((ROOT / "proto").rglob("*.proto")))


def is_defined(name: str, text: str) -> bool:
    """Whether a class, function, constant, attribute, C enum or message of this name is defined."""
    forms = rf"\b(?:class|def|enum|message|rpc) {name}\b|^\s*{name}(?:: [^=\n]+)?(?: =|$|:)"
    return re.search(forms, text, re.MULTILINE) is not None


def test_every_path_exists():
    paths = [quoted for quoted in QUOTED if PATH.fullmatch(quoted)]
    assert len(paths) > 40
    assert [path for path in paths if not any((root / path).exists() for root in (SOURCE, ROOT))] == []


def test_every_name_is_defined():
    text = source()
    names = {quoted for quoted in QUOTED if NAME.fullmatch(quoted) and not PATH.fullmatch(quoted)} - WORDS
    assert len(names) > 40
    assert [name for name in names if not all(is_defined(part, text) for part in name.split("."))] == []


def test_a_name_that_does_not_exist_is_found():
    assert not is_defined("evict_nothing_at_all", source())


def test_every_room_is_named():
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()} - {"v1"}
    assert {room for room in rooms if f"`{room}`" not in TEXT} == set()
