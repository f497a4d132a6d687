"""The extras of the distribution: which packages each command needs beyond those of a client."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from gruve.cli.output.terminal import Failure

_SERVE: Final = (
    *("torch", "numpy", "safetensors"),
    *("grpc_channelz", "grpc_health", "grpc_reflection"),
    *("prometheus_client", "redis"),
    *("cryptography", "jwt", "rfc8785"),
)
_HTTP: Final = ("connectrpc", "cryptography", "starlette", "uvicorn")
_OTEL: Final = ("opentelemetry",)
_DRAW: Final = ("verovio",)
MODULES: Final = {
    "serve": _SERVE,
    "draw": _DRAW,
    "http": _HTTP,
    "otel": _OTEL,
    "serve,draw": (*_SERVE, *_DRAW),
    "train": (*_SERVE, *_DRAW, "matplotlib"),
}
"""The modules that the extras of pyproject.toml bring."""


def missing_modules(extra: str) -> list[str]:
    """The modules of a key of `MODULES` that are not installed."""
    return [module for module in MODULES[extra] if find_spec(module) is None]


def require_extra(extra: str, purpose: str) -> None:
    """Raises `Failure` if a module of `extra`, a key of `MODULES`, is not installed.

    `purpose` is the subject of the message, such as "`gruve serve`".
    """
    if missing := missing_modules(extra):
        verb = "is" if len(missing) == 1 else "are"
        modules = ", ".join(missing)
        raise Failure(f"{purpose} needs {modules}, which {verb} not installed: pip install 'gruve[{extra}]'")
