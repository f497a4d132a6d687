"""Makes the sync client from the async one, in service/gruve/client: aio/{calls,client,control,stream}.py -> sync/.

    python tools/unasync.py            writes the files
    python tools/unasync.py --check    exits with 1 if they are not what it would write

A name is replaced as a whole word, so that a method is written once. What asyncio and threads do differently is in the
`transport` module of each. The result is checked in, so that editors and `help` see an ordinary module.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "service" / "gruve" / "client"
FILES = ("calls.py", "client.py", "control.py", "stream.py")
HEADER = "# Generated from ../aio/{name} by `make sync`; edit that one.\n"
WORDS = {
    r"async (def|for|with)\b": r"\1",
    r"await ": "",
    r"\basyncio\b": "plain threads",
    r"\b__aenter__\b": "__enter__",
    r"\b__aexit__\b": "__exit__",
    r"\b__anext__\b": "__next__",
    r"\bAsyncIterator\b": "Iterator",
    r"\bAwaitable\[Any\]": "Any",
    r"Awaitable, Callable\b": "Callable",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"\bacl(ose|osing)\b": r"cl\1",
    r"\bAsync(Client|Control|TokenStream|Conversation)\b": r"\1",
    r"\bgruve\.client\.aio\b": "gruve.client.sync",
}
SENTENCES = {
    "It belongs to one event loop.": "Threads may share it.",
    "One task reads it.": "One thread reads it.",
    "or calling `cancel` or `close`,": "or `cancel` or `close` in any thread",
    "the reader's cancellation included.": "Ctrl-C included.",
    "which its reader steers meanwhile.": "which any thread steers meanwhile.",
}
"""What a docstring says of threads, after the words were replaced; each is found once in all files together."""


def sync_sources() -> dict[str, str]:
    """The sync files by name, formatted."""
    sources = {name: HEADER.format(name=name) + (CLIENT / "aio" / name).read_text() for name in FILES}
    for name, source in sources.items():
        for pattern, word in WORDS.items():
            source = re.sub(pattern, word, source)
        sources[name] = source
    for sentence, other in SENTENCES.items():
        pattern = re.sub(r"\\ ", r"\\s+", re.escape(sentence))
        found = [name for name, source in sources.items() if re.search(pattern, source)]
        if len(found) != 1:
            raise SystemExit(f"{sentence!r} stands in {found or 'no file'}; must stand in one")
        sources[found[0]] = re.sub(pattern, other, sources[found[0]])
    return {name: formatted(name, source) for name, source in sources.items()}


def formatted(name: str, source: str) -> str:
    """The source with sorted imports, as `ruff format` leaves it."""
    ruff = [sys.executable, "-m", "ruff"]
    file = ["--stdin-filename", str(CLIENT / "sync" / name), "-"]
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        source = subprocess.run(  # noqa: S603 - this project's own formatter
            [*ruff, *command, *file], input=source, capture_output=True, text=True, check=True
        ).stdout
    return source


def main() -> int:
    """Writes the files, or with `--check` compares them."""
    stale = [name for name, source in sync_sources().items() if _differs(CLIENT / "sync" / name, source)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            sys.stderr.write(f"service/gruve/client/sync/{name} is not current; run `make sync`\n")
        return 1 if stale else 0
    for name, source in sync_sources().items():
        (CLIENT / "sync" / name).write_text(source)
    return 0


def _differs(path: Path, source: str) -> bool:
    return not path.exists() or path.read_text() != source


if __name__ == "__main__":
    sys.exit(main())
