"""A container's share of its node, as its cgroup says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraline.data import pool
from loraline.process import share

GIB = 2**30


@pytest.mark.parametrize(
    ("cpu", "memory", "cores", "processes"),
    [
        ("max 100000", "max", 64, 64),
        ("200000 100000", "max", 2, 2),
        ("150000 100000", "max", 2, 2),
        ("50000 100000", "max", 1, 1),
        ("max 100000", str(4 * GIB), 64, 25),
        ("800000 100000", str(4 * GIB), 8, 8),
        ("max 100000", str(GIB // 2), 64, 1),
        (None, None, 64, 64),
    ],
)
def test_processes_fit_the_cores_and_the_memory_of_the_container(
    cpu: str | None,
    memory: str | None,
    cores: int,
    processes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(share, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, content in (("cpu.max", cpu), ("memory.max", memory)):
        if content is not None:
            (tmp_path / name).write_text(f"{content}\n")
    assert share.cpus() == cores
    assert pool.process_count() == processes
