"""`gruve doctor`: what gruve finds on this machine, what it would use, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from gruve.cli.calls import split_address, unreached
from gruve.cli.exit_codes import DONE, FAILED
from gruve.cli.extras import missing_modules
from gruve.cli.flags.credentials import add_address, client_options
from gruve.cli.flags.model_folder import add_models, models_folder
from gruve.cli.flags.parser import Parser, add_command, add_flag, add_json
from gruve.cli.flags.serve import default_store
from gruve.cli.output.json_output import print_json
from gruve.cli.output.terminal import print_tabs, print_wrapped

DESCRIPTION = """Check this installation: versions, backend, models, session store, ports, optional programs.

Each line has one of three states: ok, optional (something works without it), or missing (serving needs it). The exit
code is 1 if something is missing. Nothing is started, installed or changed."""
EXAMPLES = """\
examples:
  gruve doctor
  gruve doctor --json | jq '.findings[] | select(.state != "ok")'
"""
State = Literal["ok", "optional", "missing"]
PACKAGES: Final = {
    "grpcio": "",
    "protobuf": "",
    "torch": "serve",
    "numpy": "serve",
    "safetensors": "serve",
    "prometheus-client": "serve",
    "redis": "serve",
    "verovio": "draw",
    "matplotlib": "train",
}
"""The packages whose versions are told, each with the extra that brings it."""
SUPPORTED_PYTHON: Final = ((3, 11), (3, 14))
"""The first version that is supported and the first one that is not."""
PROGRAMS: Final = {
    "redis-server": ("`gruve bench chaos` with Redis; sessions of several servers", "apt-get install redis-server"),
    "haproxy": ("`gruve bench chaos` behind a proxy", "apt-get install haproxy"),
}
BENCH_PACKAGES: Final = ("onnx", "onnxruntime", "openvino")
PORT_ANSWER_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    topic: str
    name: str
    state: State
    value: str
    cure: str = ""
    """What to do about it; empty if the state is ok."""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(commands, "doctor", DESCRIPTION, EXAMPLES, run)
    add_models(parser)
    add_flag(parser, "--store", str, default_store(), "the session store", variable="GRUVE_STORE", metavar="STORE")
    add_address(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Checks everything, then prints it."""
    findings = [
        *_versions(),
        *(_serving(args) if not missing_modules("serve") else ()),
        *_ports(),
        _server(args.address, client_options(args)),
        *_optional(),
    ]
    well = all(finding.state != "missing" for finding in findings)
    if args.json:
        print_json({"ok": well, "findings": [asdict(finding) for finding in findings]})
    elif sys.stdout.isatty():
        for finding in findings:
            print_wrapped(f"{finding.state:<9} {finding.topic} {finding.name}: {finding.value}")
            if finding.cure:
                print_wrapped(finding.cure, "dim", indent=" " * 10)
    else:
        print_tabs(("topic", "name", "state", "value", "cure"), [tuple(asdict(f).values()) for f in findings])
    return DONE if well else FAILED


def _versions() -> Iterator[Finding]:
    found = platform.python_version()
    first, after = SUPPORTED_PYTHON
    supported = first <= sys.version_info[:2] < after
    cure = "" if supported else f"use Python {first[0]}.{first[1]} to {after[0]}.{after[1] - 1}"
    yield Finding("version", "gruve", "ok", importlib.metadata.version("gruve"))
    yield Finding("version", "python", "ok" if supported else "missing", f"{found} in {sys.prefix}", cure)
    for package, extra in PACKAGES.items():
        version = _version(package)
        cure = "" if version else f"pip install 'gruve[{extra}]'" if extra else "install gruve again"
        absent: State = "missing" if extra in ("", "serve") else "optional"
        yield Finding("version", package, "ok" if version else absent, version or "not installed", cure)


def _serving(args: argparse.Namespace) -> Iterator[Finding]:
    """What only a server needs."""
    yield from _decoding()
    yield from _models(args.models or models_folder(None))
    yield _store(default_store() if args.store == "sqlite" else args.store)


def _decoding() -> Iterator[Finding]:
    from gruve.bench.machine import describe_machine
    from gruve.decode.cuda.device import describe_gpu, gpu_unavailable_reason
    from gruve.decode.cuda.modes import triton_unavailable
    from gruve.decode.native import unavailable_reason
    from gruve.decode.native.cores import available_cores
    from gruve.decode.native.library import chosen_isa

    machine, why_not = describe_machine(), unavailable_reason()
    yield Finding("decoding", "cpu", "ok", f"{machine['cpu']}, widest instruction set {machine['isa']}")
    yield Finding("decoding", "cores", "ok", f"{available_cores()} may be used by this process")
    reason = gpu_unavailable_reason()
    if reason is None:
        yield Finding("decoding", "gpu", "ok", describe_gpu())
        no_triton = triton_unavailable()
        yield Finding("decoding", "triton", "optional" if no_triton else "ok", no_triton or _version("triton") or "")
        yield Finding("decoding", "backend", "ok", "cuda: torch sees a GPU")
    else:
        cure = "on a machine with an NVIDIA GPU, install its driver and a CUDA build of torch"
        yield Finding("decoding", "gpu", "optional", reason, cure)
        chosen = (
            f"native with {chosen_isa()} kernels: {reason}" if why_not is None else f"reference: {reason}; {why_not}"
        )
        yield Finding("decoding", "backend", "ok", chosen)
    cure = "install a C++ compiler (apt-get install g++), then install gruve again without GRUVE_NATIVE=0"
    native: State = "optional" if why_not else "ok"
    yield Finding("decoding", "native kernels", native, why_not or "built", cure if why_not else "")


def _models(folder: Path) -> Iterator[Finding]:
    from gruve.errors import ModelError
    from gruve.model.versions import Broken, scan

    try:
        found = scan(folder)
    except ModelError as error:
        yield Finding("models", str(folder), "missing", str(error), "give --models a folder of models, or leave it out")
        return
    for name, model in found.items():
        if isinstance(model, Broken):
            yield Finding("models", name, "optional", f"broken: {model.why}", "get its files again; the others serve")
        else:
            yield Finding("models", name, "ok", f"{model.config.parameter_count():,} parameters")
    if not any(not isinstance(model, Broken) for model in found.values()):
        yield Finding("models", str(folder), "missing", "no model can be served", "`gruve models add` adds one")


def _store(where: str) -> Finding:
    """Opens an existing store and counts its sessions; of a file that is not there yet, whether it can be created."""
    from gruve.errors import GruveError
    from gruve.sessions.store.open import open_store

    kind, _, rest = where.partition(":")
    shown = where.rpartition("@")[2] if "@" in where else where
    if kind == "sqlite" and rest and not Path(rest).exists():
        folder = next(parent for parent in Path(rest).absolute().parents if parent.exists())
        if os.access(folder, os.W_OK):
            return Finding("store", shown, "ok", "will be created")
        return Finding("store", shown, "missing", f"{folder} is not writable", "give `gruve serve` another --store")
    try:
        store = open_store(where)
        if store is None:
            return Finding("store", shown, "ok", "sessions end with the server")
        try:
            return Finding("store", shown, "ok", f"{store.count():,} sessions")
        finally:
            store.close()
    except GruveError as error:
        if "in use by another server" in str(error):
            return Finding("store", shown, "ok", "in use by a running server")
        return Finding("store", shown, "missing", str(error), "start it, or give `gruve serve` another --store")


def _ports() -> Iterator[Finding]:
    wanted = (
        ("gRPC", "GRUVE_HOST", "GRUVE_PORT", 50051),
        ("metrics", "GRUVE_METRICS_HOST", "GRUVE_METRICS_PORT", 9464),
    )
    for name, host_variable, port_variable, default in wanted:
        host, port = os.environ.get(host_variable, "127.0.0.1"), os.environ.get(port_variable, str(default))
        try:
            family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, int(port)))
        except (OSError, OverflowError, ValueError) as error:
            cure = f"another server may have it; give `gruve serve` another port ({port_variable})"
            yield Finding("port", f"{name} {host}:{port}", "optional", str(error), cure)
        else:
            yield Finding("port", f"{name} {host}:{port}", "ok", "free")


def _server(addresses: str, options: Mapping[str, Any]) -> Finding:
    from gruve.client import AccessDenied, CallFailed, Client, Reconnect

    once = Reconnect(max_reconnects=0, first_reconnects=0)
    with Client(split_address(addresses), reconnect=once, **options) as client:
        try:
            models = client.models(timeout_s=PORT_ANSWER_S)
        except AccessDenied as error:
            return Finding("server", addresses, "optional", str(error), "set GRUVE_API_KEY, or give --api-key-file")
        except CallFailed as error:
            return Finding("server", addresses, "optional", *unreached(error, addresses))
    return Finding("server", addresses, "ok", f"serves {', '.join(model.name for model in models)}")


def _optional() -> Iterator[Finding]:
    for program, (purpose, cure) in PROGRAMS.items():
        path = shutil.which(program)
        yield Finding("optional", program, "ok" if path else "optional", path or f"for {purpose}", "" if path else cure)
    for package in BENCH_PACKAGES:
        version = _version(package)
        cure = "" if version else "pip install 'gruve[bench]'"
        value = version or "for comparison in `gruve bench decode`"
        yield Finding("optional", package, "ok" if version else "optional", value, cure)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
