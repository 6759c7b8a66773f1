"""Whether a run is at work: its process renews a lease in the run's tags while it lives.

A process of this machine is looked up; one of another machine is dead when its lease is old.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loraline.errors import TryAgain
from loraline.tracking.settings import Settings
from loraline.tracking.tags import LEASE, PROCESS, WORKFLOW_UID

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SECONDS = 180.0
"""Seconds without a renewal after which the holder counts as dead; five renewals may be lost."""

RENEWED_EVERY = 30.0

DAY = 86_400.0


def tags() -> dict[str, str]:
    """The tags with which this process begins to hold a run."""
    return {PROCESS: this_process(), LEASE: f"{time.time():.0f}"}


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{start_ticks(os.getpid())}"


def start_ticks(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; empty where none is alive.

    It tells a process from a later one of the same number. See proc(5), fields 3 and 22 of `stat`:
    one that has ended and was not waited for (a container may lack an init) is a zombie.
    """
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else fields[18]


def holder(run: Run) -> str:
    """Who is at work on a run, in words; empty if nobody is.

    A retry of a workflow never runs beside the try before it, so that its silence on another
    machine is not waited for.
    """
    if run.info.status != "RUNNING":
        return ""
    host, _, process = run.data.tags.get(PROCESS, "").partition(":")
    pid, _, since = process.partition(":")
    if host == socket.gethostname() and Path("/proc/self").exists():
        alive = pid.isdecimal() and pid != str(os.getpid()) and since == start_ticks(int(pid))
        return f"process {pid}" if alive and since else ""
    workflow = run.data.tags.get(WORKFLOW_UID)
    if workflow and workflow == Settings().workflow_uid:
        return ""
    if not (host and pid.isdecimal()):
        return ""
    return f"process {pid} on {host}" if abs(time.time() - last_renewed(run)) < SECONDS else ""


def last_renewed(run: Run) -> float:
    """When a run's process last renewed its lease, in seconds since 1970; 0 without such a tag."""
    try:
        return float(run.data.tags.get(LEASE, "0"))
    except ValueError:
        return 0.0


def is_dead(run: Run) -> bool:
    """Whether the process of a run that is called RUNNING has ended.

    Of one on another machine that renews no lease, nothing is known for a day.
    """
    tags = run.data.tags
    host = tags.get(PROCESS, "").partition(":")[0]
    workflow = tags.get(WORKFLOW_UID)
    can_be_told = LEASE in tags or host == socket.gethostname()
    if can_be_told or (workflow and workflow == Settings().workflow_uid):
        return not holder(run)
    return time.time() - run.info.start_time / 1000 > DAY


class Lease:
    """This process' hold on a run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.report: Callable[[], Mapping[str, str]] = dict
        """Further tags to renew with it."""
        self.lost = False
        self.ended = threading.Event()

    def renew(self) -> None:
        """Say that the holder lives, unless another process has taken the run over."""
        tags = self.client.get_run(self.run_id).data.tags
        self.lost = tags.get(PROCESS) != this_process()
        if not self.lost:
            for name, value in {LEASE: f"{time.time():.0f}", **self.report()}.items():
                self.client.set_tag(self.run_id, name, value)

    def renew_until_ended(self) -> None:
        while not self.lost and not self.ended.wait(RENEWED_EVERY):
            # A store that is away for a while costs a renewal, and not the training.
            with suppress(Exception):
                self.renew()

    def check(self) -> None:
        """Raise TryAgain when another process has taken the run over."""
        if self.lost:
            raise TryAgain(
                f"run {self.run_id} was taken over by another process while this one could not "
                "be heard"
            )


@contextmanager
def held(client: MlflowClient, run_id: str) -> Iterator[Lease]:
    """Renew the lease on a run opened with `tags()` while the block runs and at its end."""
    lease = Lease(client, run_id)
    thread = threading.Thread(target=lease.renew_until_ended, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.ended.set()
        thread.join(RENEWED_EVERY)
        with suppress(Exception):
            lease.renew()
