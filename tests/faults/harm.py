"""Faults as a step's own process meets them: each function arms one, in the forked child.

A moment is a call of the step to its store: `set_tag 3` is the third time that it sets a tag.
Calls of other threads, such as a lease's renewals, are not counted.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CALLS = {
    "mlflow.tracking._tracking_service.client:TrackingServiceClient": (
        "create_run",
        "get_run",
        "search_runs",
        "set_tag",
        "log_metric",
        "log_param",
        "log_batch",
        "log_inputs",
        "log_artifact",
        "log_artifacts",
        "create_logged_model",
        "finalize_logged_model",
        "set_logged_model_tags",
        "set_terminated",
        "update_run",
        "log_outputs",
    ),
    "mlflow.tracking._model_registry.client:ModelRegistryClient": (
        "create_registered_model",
        "delete_registered_model",
        "create_model_version",
        "update_model_version",
        "get_model_version",
        "get_model_version_by_alias",
        "search_model_versions",
        "set_model_version_tag",
        "delete_model_version_tag",
        "set_registered_model_alias",
        "delete_registered_model_alias",
        "set_registered_model_tag",
    ),
    "loraline.tracking.runs": ("download", "logged_adapter", "hand_over"),
}
"""What the steps ask of the store, and of their folder for outputs at the end."""

Harm = Callable[[], None]


def at(moment: str, harm: Harm) -> None:
    """Do harm just before a call, such as `set_tag 3`."""
    name, _, number = moment.partition(" ")
    counts: collections.Counter[str] = collections.Counter()

    def before(called: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        counts[called] += 1
        if called == name and counts[called] == int(number):
            harm()

    watch(before)


def watch(before: Callable[[str], None]) -> None:
    """Call `before` with the name of each call in CALLS, whoever makes it."""
    for place, names in CALLS.items():
        module, _, owner = place.partition(":")
        target: Any = importlib.import_module(module)
        target = getattr(target, owner) if owner else target
        for name in names:
            function = getattr(target, name, None)
            if function is not None:
                setattr(target, name, watched(function, name, before))


def watched(
    function: Callable[..., Any], name: str, before: Callable[[str], None]
) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        before(name)
        return function(*arguments, **options)

    return call


def trace(file: str) -> None:
    """Write down the calls of a step, in order: what the table's moments are taken from."""
    counts: collections.Counter[str] = collections.Counter()

    def before(called: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        counts[called] += 1
        with Path(file).open("a") as calls:
            calls.write(f"{called} {counts[called]}\n")

    watch(before)


def stopped(number: int, moment: str) -> None:
    """Send this process a signal, as the kernel or a controller does."""
    at(moment, lambda: os.kill(os.getpid(), number))


def paused(moment: str, reached: str, go: str) -> None:
    """Stand still until somebody outside has done something: `reached` is made, `go` waited for."""

    def wait() -> None:
        Path(reached).touch()
        for _ in range(30_000):
            if Path(go).exists():
                return
            time.sleep(0.02)

    at(moment, wait)


def clock(moment: str, seconds: float) -> None:
    """Let the clock jump; what counts from the machine's start is not moved by it."""
    now = time.time

    def jump() -> None:
        time.time = lambda: now() + seconds

    at(moment, jump) if moment else jump()


def database(moment: str, pragma: str) -> None:
    """Set a pragma on every connection to the SQLite store from a moment on.

    `query_only = ON` makes SQLite refuse as a read-only file does, with SQLite's own error.
    """
    import sqlalchemy

    def arm() -> None:
        @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
        def pragmas(_connection: Any, cursor: Any, *_: Any) -> None:
            cursor.execute(f"PRAGMA {pragma}")

    at(moment, arm)


def largest_file(size: int, moment: str) -> None:
    """No file may grow over so many bytes (`ulimit -f`)."""
    at(moment, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


MEMORY = 32 * 2**20
"""Bytes that a process may still take in a control group of `memory_group`."""


def out_of_memory(moment: str, group: str) -> None:
    """Enter a control group with next to no memory at a moment, and take more: the kernel kills."""

    def use_memory() -> None:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        taken = [b"x" * 2**20 for _ in range(MEMORY // 2**20 * 8)]
        raise AssertionError(f"the control group let this process take {len(taken)} MiB")

    at(moment, use_memory)


def memory_group(name: str) -> Path | None:
    """A new control group with MEMORY bytes and no swap; None where this user can make none."""
    root = Path("/sys/fs/cgroup")
    for parent, limits in (
        (root / "memory", {"memory.limit_in_bytes": MEMORY, "memory.swappiness": 0}),
        (root, {"memory.max": MEMORY, "memory.swap.max": 0}),
    ):
        group = parent / name
        try:
            group.mkdir()
            for file, limit in limits.items():
                # An ordinary folder would take any file.
                if not (group / file).exists():
                    raise FileNotFoundError(group / file)
                (group / file).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        return group
    return None


@functools.cache
def memory_can_be_limited() -> bool:
    group = memory_group(f"loraline-probe-{os.getpid()}")
    if group is not None:
        group.rmdir()
    return group is not None


NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
"""CLONE_NEWUSER and CLONE_NEWNS of unshare(2)."""

PRIVATE = 0x00004000 | 0x00040000
"""MS_REC and MS_PRIVATE of mount(2): what is mounted from now on is seen by this process alone."""


def unshare_mounts(libc: ctypes.CDLL) -> None:
    """Give this process mounts of its own: as root, or else in a user namespace of its own."""
    user, group = os.getuid(), os.getgid()
    if user == 0 and libc.unshare(NEW_MOUNTS) == 0:
        if libc.mount(b"none", b"/", None, PRIVATE, None):
            raise OSError(ctypes.get_errno(), "mount")
        return
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def small_disk(folder: str, size: int) -> None:
    """Mount a real disk on a folder, with `size` KiB to spare, in mounts of this process' own.

    What the folder held is copied into it first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    unshare_mounts(libc)
    held = [(file, file.read_bytes()) for file in Path(folder).rglob("*") if file.is_file()]
    kibibytes = sum(len(content) for _, content in held) // 1024 + size
    # Each file also takes up the rest of its last page. Of size 0 a disk would have no limit.
    options = f"size={kibibytes + 4 * len(held) + 4}k".encode()
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    for file, content in held:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    if not size:
        fill(folder)


def fill(folder: str) -> None:
    """Fill a folder's disk to the last byte."""
    with Path(folder, FILLER).open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


ROOM = 64 * 1024
"""KiB that a disk has to spare until it is filled up."""

FILLER = "filler"
"""The file that fills a disk up."""


def disk_fills_up(moment: str, folder: str, keeper: str) -> None:
    """Mount a real disk on a folder, and fill it to the last byte at a moment.

    The disk is gone with the last process that sees it, so that a child of the step stays to keep
    it: the file `keeper` gets its process ID, and `/proc/PID/root` leads to the disk.
    """
    small_disk(folder, ROOM)
    if os.fork() == 0:
        os.setsid()
        Path(keeper).write_text(str(os.getpid()))
        time.sleep(300)
        os._exit(0)

    at(moment, lambda: fill(folder))


@functools.cache
def disks_can_be_mounted() -> bool:
    """Whether this kernel lets this user mount a disk that no other process sees."""
    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if pid == 0:
            try:
                small_disk(folder, 64)
                Path(folder, "file").touch()
            except OSError:
                os._exit(1)
            os._exit(0)
        mounted = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return mounted and not any(Path(folder).iterdir())
