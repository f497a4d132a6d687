"""The systems that are compared: their packages, how each is started and tuned, and its transport."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from gruve.bench.load.transport import HttpTransport, Request, Transport, TritonTransport, connect

TORCH = "torch==2.13.0"
PACKAGE_ROOT = Path(__file__).parents[3]
TRITON_CONFIG = """\
backend: "python"
max_batch_size: 64
model_transaction_policy { decoupled: true }
input [
  { name: "prompt" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "seed" data_type: TYPE_INT32 dims: [ 1 ] }
]
output [ { name: "token" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching {
  iterative_sequence: true
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 256 }
}
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

Connect = Callable[[], Transport]


@dataclasses.dataclass(frozen=True, slots=True)
class System:
    """One peer."""

    name: str
    folder: str
    """The packages of its environment."""
    requirements: tuple[str, ...]
    command: Callable[[Path, Path, int], Sequence[str]]
    """(environment, a folder with `weights.pt`, port) -> the command that starts it."""
    connect: Callable[[int], Connect]
    """port -> the function that creates a client's transport."""


def _program(name: str, *settings: str) -> Callable[[Path, Path, int], Sequence[str]]:
    """One of the programs beside this file, in the peer's environment, with one torch thread."""

    def command(environment: Path, folder: Path, port: int) -> Sequence[str]:
        python = str(environment / "bin/python")
        variables = (f"PYTHONPATH={PACKAGE_ROOT}", "OMP_NUM_THREADS=1", *settings)
        return ("env", *variables, python, "-m", f"gruve.bench.peers.{name}", str(folder / "weights.pt"), str(port))

    return command


def _triton(environment: Path, folder: Path, port: int) -> Sequence[str]:
    """The server of the wheel, with a model repository made for it."""
    site = next((environment / "lib").glob("python3.*/site-packages"))
    server = site / "pytriton/tritonserver"
    backend = server / "backends/python"
    version = ".".join(platform.python_version_tuple()[:2])
    shutil.copy(server / f"python_backend_stubs/{version}/triton_python_backend_stub", backend)
    entry = folder / "repository/gruve"
    (entry / "1").mkdir(parents=True, exist_ok=True)
    (entry / "config.pbtxt").write_text(TRITON_CONFIG)
    shutil.copy(folder / "weights.pt", entry / "1/weights.pt")
    # Its interpreter ignores PYTHONPATH.
    paths = [str(site), str(PACKAGE_ROOT)]
    program = "from gruve.bench.peers.triton_model import TritonPythonModel"
    (entry / "1/model.py").write_text(f"import sys\n\nsys.path[:0] = {paths}\n{program}\n")
    return (
        *("env", f"LD_LIBRARY_PATH={site / 'nvidia_pytriton.libs'}", "OMP_NUM_THREADS=1"),
        *(str(server / "bin/tritonserver"), "--model-repository", str(entry.parent)),
        *("--backend-directory", str(server / "backends"), "--grpc-address", "127.0.0.1", "--grpc-port", str(port)),
        *("--allow-http", "false", "--allow-metrics", "false"),
    )


def _grpc(port: int) -> Connect:
    return connect(f"127.0.0.1:{port}")


def _http(path: str) -> Callable[[int], Connect]:
    return lambda port: functools.partial(HttpTransport, "127.0.0.1", port, path, _body, _lines)


def _triton_grpc(port: int) -> Connect:
    return functools.partial(TritonTransport, f"127.0.0.1:{port}")


def _body(request: Request) -> bytes:
    return json.dumps({"prompt": request.prompt, "max_tokens": request.max_tokens}).encode()


def _lines(chunk: bytes) -> tuple[int, ...]:
    return tuple(int(line) for line in chunk.split())


SYSTEMS = (
    System(
        "grpc.aio + nn.GRU",
        "grpc_loop",
        (TORCH, "numpy>=2,<3", "grpcio==1.85.1", "protobuf==7.36.2"),
        _program("grpc_loop"),
        _grpc,
    ),
    System("Triton", "triton", (TORCH, "nvidia-pytriton==0.7.0"), _triton, _triton_grpc),
    System(
        "LitServe", "litserve", (TORCH, "numpy>=2,<3", "litserve==0.2.19"), _program("litserve_app"), _http("/predict")
    ),
    System(
        "Ray Serve",
        "ray",
        (TORCH, "numpy>=2,<3", "ray[serve]==2.60.0"),
        _program("ray_app", "RAY_SERVE_THROUGHPUT_OPTIMIZED=1", "RAY_AUTH_MODE=disabled", "RAY_USAGE_STATS_ENABLED=0"),
        _http("/"),
    ),
)
