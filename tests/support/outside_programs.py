"""Programs that nobody here wrote, each in a virtual environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from gruve.bench.peers.environments import environment

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/clients"
"""Where the environments are kept for the next time; git ignores it, and `make clean` removes it."""
PINS = ROOT / "tests/gateway/clients"
PATIENCE_S = 300


def installed(name: str) -> Path:
    """The `bin` folder of the environment with exactly the packages of `tests/gateway/clients/NAME.txt`."""
    pins = [line for line in (PINS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    return environment(CACHE, name, ["--no-deps", "--no-compile", *pins], install=True) / "bin"


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a program prints; fails with all that it said if it fails. Hugging Face's hub is not asked for anything."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HOME": str(cwd)}
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=own | offline | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
