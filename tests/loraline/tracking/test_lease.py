"""Who is at work on a run, as its tags tell."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from loraline.errors import TryAgain
from loraline.tracking import lease, store
from loraline.tracking.tags import LEASE, PROCESS, WORKFLOW_UID

HERE = socket.gethostname()
PARENT = os.getppid()


def run(
    process: str, silent: float = 0, status: str = "RUNNING", workflow: str = ""
) -> Callable[[], Any]:
    """A run as it is `silent` seconds after its process said that it lives."""

    def make_run() -> Any:
        tags = {PROCESS: process, LEASE: f"{time.time() - silent:.0f}", WORKFLOW_UID: workflow}
        info, data = SimpleNamespace(status=status), SimpleNamespace(tags=tags)
        return SimpleNamespace(info=info, data=data)

    return make_run


@pytest.mark.parametrize(
    ("of_a_run", "holder"),
    [
        (run(f"{HERE}:{PARENT}:{lease.start_ticks(PARENT)}"), f"process {PARENT}"),
        (run(f"{HERE}:{PARENT}:{lease.start_ticks(PARENT)}", silent=9999), f"process {PARENT}"),
        (run(f"{HERE}:{PARENT}:{lease.start_ticks(PARENT)}", workflow="this"), f"process {PARENT}"),
        (run(f"{HERE}:{PARENT}:1"), ""),
        (run(f"{HERE}:99999999:1"), ""),
        (run(f"{HERE}:{PARENT}:{lease.start_ticks(PARENT)}", status="KILLED"), ""),
        (run("elsewhere:1:5", silent=100), "process 1 on elsewhere"),
        (run("elsewhere:1:5", silent=1000), ""),
        (run("elsewhere:1:5", silent=-(10**8)), ""),
        (run("elsewhere:1:5", workflow="this"), ""),
        (run("", silent=10**9), ""),
    ],
    ids=[
        "it lives",
        "it lives and is silent",
        "it lives in the same workflow",
        "another has its number now",
        "it is gone",
        "its run has ended",
        "it spoke on another machine",
        "it has been silent there",
        "its clock was years ahead",
        "this is its workflow's retry",
        "a run of an earlier version",
    ],
)
def test_a_holder_is_known_by_its_process_or_by_its_silence(
    of_a_run: Callable[[], Any], holder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_WORKFLOW_UID", "this")
    assert lease.holder(of_a_run()) == holder


def test_a_process_that_has_ended_is_dead_though_nobody_has_asked_for_its_end() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert Path("/proc", str(child), "stat").exists() and lease.start_ticks(child) == ""
    os.waitpid(child, 0)
    assert lease.start_ticks(os.getpid()) == lease.start_ticks(os.getpid()) != ""


def test_a_lease_is_renewed_until_its_block_ends(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.01)
    client = store.connect()
    with mlflow.start_run(tags=lease.tags() | {LEASE: "0"}) as opened:
        run_id = opened.info.run_id
        with lease.held(client, run_id) as held:
            held.report = lambda: {"loraline.spent": "something"}
            deadline = time.monotonic() + 20
            while client.get_run(run_id).data.tags[LEASE] == "0" and time.monotonic() < deadline:
                time.sleep(0.01)
            held.check()
            client.set_tag(run_id, PROCESS, "elsewhere:1:5")
            while not held.lost and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(TryAgain, match=f"run {run_id} was taken over"):
                held.check()
    tags = client.get_run(run_id).data.tags
    assert abs(float(tags[LEASE]) - time.time()) < 20
    assert tags["loraline.spent"] == "something"
