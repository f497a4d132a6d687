"""Outside programs that tests need: absent, they skip with the install command; named in GRUVE_REQUIRE, they fail."""

from __future__ import annotations

import os
import shutil

import pytest


def need_program(name: str, install: str) -> str:
    """The path of a program; skips the test if it is absent, or fails it if GRUVE_REQUIRE, a comma list, names it."""
    path = shutil.which(name)
    if path is None:
        need(name, present=False, install=install)
    return path or ""


def need(name: str, *, present: bool, install: str) -> None:
    """Skip, or fail if GRUVE_REQUIRE names it, where something the test needs is not present."""
    if present:
        return
    if name in os.environ.get("GRUVE_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required (GRUVE_REQUIRE) and absent; install it: {install}")
    pytest.skip(f"{name} is absent; install it: {install}")
