"""Reports the entries of a repository that cannot be served, at most some of them, because there may be thousands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gruve.serve.calls.status import shorten

log = logging.getLogger(__name__)
MAX_LOGGED_MODELS, MAX_SHOWN_MODELS = 20, 3
"""How many entries that cannot be served are logged one by one, and named in an error."""


def log_broken(broken: Sequence[tuple[str, str]]) -> None:
    """Logs the entries that cannot be served, the first of them one by one."""
    for name, why in broken[:MAX_LOGGED_MODELS]:
        log.warning("model is broken", extra={"model": name, "why": why})
    if len(broken) > MAX_LOGGED_MODELS:
        log.warning("more models are broken", extra={"models": len(broken) - MAX_LOGGED_MODELS})


def describe_broken(broken: Sequence[tuple[str, str]]) -> str:
    """Why the entries of a repository cannot be served, in an error of bounded length."""
    if not broken:
        files = "config.json, tokenizer.json, model.safetensors"
        return f"it has no folder with a model; a model is a folder with {files}; `gruve models add` makes one"
    shown = "; ".join(f"{shorten(name)}: {shorten(why)}" for name, why in broken[:MAX_SHOWN_MODELS])
    more = len(broken) - MAX_SHOWN_MODELS
    return f"{shown}; and {more} more folders without a model that can be served" if more > 0 else shown
