"""Outside programs that tests need. Without one, a test is skipped with the install command; see also GRUVE_REQUIRE."""

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
    """Skips the test if something it needs is not present, or fails it if GRUVE_REQUIRE names it."""
    if present:
        return
    if name in os.environ.get("GRUVE_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required (GRUVE_REQUIRE) and absent; install it: {install}")
    pytest.skip(f"{name} is absent; install it: {install}")
