"""Describes the machine and the versions of a measurement, and the cost of processes. Needs /proc for most of it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from gruve import __version__
from gruve.bench.result import Value

PACKAGES = ("torch", "numpy", "grpcio", "protobuf")
PROC = Path("/proc")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine() -> dict[str, Value]:
    """The CPU's name, cores, instruction set, governor, caches and memory; None for what the system does not report."""
    cpuinfo = _text(PROC / "cpuinfo")
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text(PROC / "meminfo"))
    return {
        "cpu": _first(r"model name\s*: (.+)", cpuinfo) or platform.processor() or platform.machine(),
        "family": _first(r"cpu family\s*: (\d+)", cpuinfo),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": instruction_set(_first(r"(?:flags|Features)\s*: (.+)", cpuinfo) or ""),
        "governor": _text(GOVERNOR).strip() or None,
        "l3_mb": _l3_mb(),
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def describe_versions(*more: str) -> dict[str, Value]:
    """The versions of gruve, Python and the benchmark's packages; None for a package that is not installed."""
    found: dict[str, Value] = {"gruve": __version__, "git": _git_hash(), "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def optional_package(name: str) -> Any:
    """A package that only benchmarks use; None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def instruction_set(flags: str) -> str:
    """The widest instruction set of the CPU's flags that gruve has a kernel for."""
    have = set(flags.split())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= have:
        return "avx512"
    if {"avx2", "fma", "f16c"} <= have:
        return "avx2"
    if "asimd" in have:
        return "dotprod" if "asimddp" in have else "neon"
    return platform.machine()


def process_cpu_s(pid: int) -> float:
    """CPU seconds that a process and its descendants have used so far; NaN if the system does not report them."""
    ticks = 0
    for each in descendants(pid):
        stat = _text(PROC / str(each) / "stat")
        if not stat:
            return float("nan")
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def process_rss_mb(pid: int) -> float:
    """Resident memory of a process and its descendants in MB (10^6 bytes); NaN if the system does not report it."""
    found = [_first(r"VmRSS:\s+(\d+) kB", _text(PROC / str(each) / "status")) for each in descendants(pid)]
    return sum(int(kb) * 1024 / 1e6 if kb else float("nan") for kb in found)


def descendants(pid: int) -> list[int]:
    """A process and all its running descendants; only the process if the system does not report them."""
    children: dict[int, list[int]] = {}
    for stat in PROC.glob("[0-9]*/stat"):
        fields = _text(stat).rpartition(")")[2].split()
        if fields:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _git_hash() -> str | None:
    """The commit of the checkout that this package is in, marked if files were changed; None outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = str(Path(__file__).parent)
    described = subprocess.run(  # noqa: S603 - git itself, with fixed arguments
        [git, "-C", here, "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def _l3_mb() -> float | None:
    size = _text(Path("/sys/devices/system/cpu/cpu0/cache/index3/size")).strip()
    return int(size[:-1]) / 1024 if size.endswith("K") else None


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1].strip() if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
