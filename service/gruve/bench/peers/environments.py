"""Virtual environments for the peers, kept in a folder that git ignores and made again when their pins change."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PINS = "requirements.txt"
INSTALL_S = 1_800.0


class NotInstalled(Exception):
    """A peer's packages could not be installed. The message gives the reason."""


def environment(cache: Path, name: str, requirements: Sequence[str], *, install: bool) -> Path:
    """The folder of a virtual environment that holds `requirements`; raises `NotInstalled`.

    It is complete if its pins are stored in it, which is done last.
    """
    folder = (cache / name).absolute()
    pins = "".join(f"{requirement}\n" for requirement in requirements)
    written = folder / PINS
    if written.is_file() and written.read_text() == pins:
        return folder
    if not install:
        raise NotInstalled("it is not installed yet, and --quick installs nothing")
    _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)])
    _run(name, [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *requirements])
    written.write_text(pins)
    return folder


def _run(name: str, command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{name} could not be installed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NotInstalled(f"{name} could not be installed: {' '.join(last)}")
