"""This process's share of its machine: the container's limits, not the whole node."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where cgroup v2 shows a process the limits of its container (kernel's cgroup-v2.rst)."""


def cpus() -> int:
    """Cores to keep busy: those that it may run on, or the quota of its cgroup if that is less."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = read("cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return allowed
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


def memory() -> int | None:
    """Bytes that the cgroup may use at most; None where it sets no limit."""
    most = read("memory.max")
    return int(most) if most.isdigit() else None


def read(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
