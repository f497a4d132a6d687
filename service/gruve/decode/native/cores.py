"""Counts the cores that this process may use. Knows the operating system, not decoding."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores() -> int:
    """The number of cores this process may use: its CPU affinity, or less if its control groups limit its time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded down: if the threads use more time than the quota, all of them stop until the next period.
    return max(1, int(min(bound, quota_cores(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))))


def quota_cores(groups: Path, own: Path) -> float:
    """The CPU time that version 2 control groups named by `own` allow, in cores; infinite if there is no limit."""
    try:
        named = [line.partition("::")[2] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return math.inf
    found = math.inf
    for name in named:
        folder = groups / name.strip("/")
        for group in (folder, *folder.parents):
            try:
                most, period = (group / "cpu.max").read_text().split()
                found = min(found, int(most) / int(period))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return found
