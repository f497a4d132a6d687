"""The map of rooms as data: which room may import which, and which places may use which library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "service" / "gruve"

# A room may import from the rooms named here, and from itself.
MAY_IMPORT = {
    "errors": set(),
    "watched_files": {"errors"},
    "ports": {"errors", "watched_files"},
    "certificates": {"errors", "watched_files", "ports"},
    "v1": set(),
    "receipt": {"errors", "v1"},
    "tune": {"errors"},
    "model": {"errors", "tune"},
    "decode": {"errors", "model"},
    "training": {"errors", "tune", "model", "decode"},
    "engine": {"errors", "model", "decode"},
    "sessions": {"errors", "receipt", "model", "decode", "engine"},
    "serve": {
        "errors",
        "watched_files",
        "ports",
        "certificates",
        "receipt",
        "model",
        "decode",
        "engine",
        "sessions",
        "v1",
    },
    "client": {"errors", "receipt", "v1"},
    "gateway": {"errors", "ports", "certificates", "receipt", "tune", "client", "v1"},
    "bench": {
        "errors",
        "ports",
        "receipt",
        "tune",
        "model",
        "training",
        "decode",
        "engine",
        "sessions",
        "serve",
        "client",
        "gateway",
        "v1",
    },
    "cli": {
        "errors",
        "ports",
        "receipt",
        "tune",
        "model",
        "training",
        "decode",
        "engine",
        "sessions",
        "serve",
        "client",
        "gateway",
        "bench",
        "v1",
    },
}
# What is outside the standard library, or stands for a concern: only these places may know it.
ALONE_MAY_KNOW = {
    "argparse": ("cli",),
    "asyncio": ("sessions/persistence", "serve", "client", "gateway", "bench", "cli"),
    "connectrpc": ("gateway/rpc",),
    "cryptography": ("receipt/signing", "certificates", "bench/protection"),
    "rfc8785": ("receipt/signing",),
    "ctypes": ("decode",),
    "grpc": ("serve", "client", "gateway", "bench"),
    "matplotlib": ("training", "bench"),
    "opentelemetry": ("serve/calls/tracing", "client/tracing", "cli/commands/serve"),
    "prometheus_client": ("serve",),
    "redis": ("sessions/store",),
    "rich": ("cli",),
    "safetensors": ("model", "training"),
    "sqlite3": ("sessions/store", "bench/chaos/fault_injection"),
    "threading": (
        "decode",
        "engine",
        "sessions/store",
        "serve/metrics_server",
        "watched_files",
        "bench",
        "cli",
        "client",
    ),
    "starlette": ("gateway", "bench/peers"),
    "torch": ("model", "training", "decode", "bench"),
    "triton": ("decode",),
    "uvicorn": ("gateway/connection", "gateway/server"),
    "verovio": ("tune/draw",),
}
# Beside the command line, only this place reads the environment: `Client.from_env` has to.
MAY_READ_THE_ENVIRONMENT = "client/environment"
# The folders of a room that has some; each may import from those before it.
FOLDERS = {"serve": ("callers", "calls", "models", "streams"), "cli": ("output", "flags", "commands")}
# Rooms inside rooms that know less than the house they stand in.
MAY_NOT_KNOW = {
    "engine/chooser": {"torch", "numpy", "threading", "time"},
    "engine/deadlines": {"torch", "numpy", "threading", "time"},
    "engine/delivery": {"torch", "numpy", "threading", "time"},
    "engine/endings": {"torch", "numpy", "threading", "time"},
    "engine/scheduler": {"torch", "numpy", "threading", "time"},
    "engine/sequence": {"torch", "threading", "time"},
    "engine/slot_times": {"torch", "numpy", "threading", "time"},
    "engine/step_times": {"torch", "numpy", "threading", "time"},
    "engine/tenant_queue": {"torch", "numpy", "threading", "time"},
    "engine/update": {"torch", "threading", "time"},
    "decode/stops": {"torch", "threading", "time"},
    "engine": {"asyncio"},
    "sessions": {"torch"},
    "sessions/record": {"time"},
    "sessions/table": {"threading"},
    "sessions/generations": {"time"},
    "model": {"threading", "time"},
}


def place(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__")


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if place(path).split("/")[0] not in ("v1", "__init__")]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(where: str, places: tuple[str, ...] | str) -> bool:
    return any(where == p or where.startswith(p + "/") for p in ((places,) if isinstance(places, str) else places))


def complaints(path: Path) -> list[str]:
    where = place(path)
    room = where.split("/")[0]
    found = []
    for name in imports(ast.parse(path.read_text())):
        top, *rest = name.split(".")
        if top == "gruve" and rest and rest[0] in MAY_IMPORT and rest[0] != room and rest[0] not in MAY_IMPORT[room]:
            found.append(f"{where} may not import {rest[0]}")
        if top in ALONE_MAY_KNOW and not is_in(where, ALONE_MAY_KNOW[top]):
            found.append(f"{where} may not know {top}")
        found += [
            f"{where} may not know {top}"
            for small, unknown in MAY_NOT_KNOW.items()
            if is_in(where, small) and top in unknown
        ]
    return found


@pytest.mark.parametrize("path", files(), ids=place)
def test_a_room_imports_and_knows_only_what_the_map_allows(path):
    assert not complaints(path)


@pytest.mark.parametrize(("room", "folder"), [(room, folder) for room, names in FOLDERS.items() for folder in names])
def test_a_folder_of_a_room_imports_only_from_those_before_it(room, folder):
    later = FOLDERS[room][FOLDERS[room].index(folder) + 1 :]
    for path in (SOURCE / room / folder).glob("*.py"):
        found = [name for name in later if f"gruve.{room}.{name}" in path.read_text()]
        assert not found, path


@pytest.mark.parametrize("path", [p for p in files() if not is_in(place(p), "cli")], ids=place)
def test_only_the_command_line_imports_late_prints_or_reads_the_environment(path):
    tree = ast.parse(path.read_text())
    late = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)]
    assert not [n.lineno for n in late if isinstance(n, ast.Import | ast.ImportFrom)], "imports stand at the top"
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)]
    forbidden = {"print"} if place(path) == MAY_READ_THE_ENVIRONMENT else {"print", "environ", "getenv"}
    assert not [n.lineno for n in names if getattr(n, "id", getattr(n, "attr", "")) in forbidden]


def test_the_map_names_every_room_that_stands():
    rooms = {place(path).split("/")[0] for path in files()}
    assert rooms <= set(MAY_IMPORT), f"no purpose is written down for {sorted(rooms - set(MAY_IMPORT))}"


def test_the_map_would_catch_an_offence(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "engine").mkdir()
    path = tmp_path / "engine" / "scheduler.py"
    path.write_text("import torch\nfrom gruve.serve import server\n")
    assert "engine/scheduler may not know torch" in complaints(path)
    assert "engine/scheduler may not import serve" in complaints(path)
