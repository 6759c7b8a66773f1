"""Worker processes: when they are worth their start, and how they are stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.data.reading import readers
from loraline.data.work import Work
from loraline.process import share

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.context import BaseContext

PARALLEL_FROM = 2**20
"""Bytes of data files from which several processes are worth their start."""

OF_ALL, OF_ONE = 0.7 * 2**30, 0.13 * 2**30
"""Bytes that preparing takes by itself, and with each process more: 0.82 GiB were measured for two
of them and 1.53 for eight, on text."""


def wake(data: Sequence[str], workers: int) -> None:
    """Begin to import what workers need, some seconds, where data files are here and large."""
    paths = chain.from_iterable(
        path.iterdir() if path.is_dir() else [path] for path in map(Path, data)
    )
    files = (path for path in paths if readers.holds_rows(path.name) and path.is_file())
    if workers > 1 and any(file.stat().st_size >= PARALLEL_FROM for file in files):
        preloading()


def preloading() -> BaseContext:
    """A way to start processes that imports what they need once, so its memory counts once."""
    import multiprocessing
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loraline.data.preload"])
    # Ctrl-C is the step's, which ends its workers: their server begins with the signal blocked. The
    # tracker would unblock it if it began with it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def processes(count: int) -> ProcessPoolExecutor:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(count, preloading(), initializer=settle)


def apart(work: Work, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that needs the tokenizer.

    By a worker, unless transformers is loaded here already: that takes seconds and 300 MB.
    """
    if work.tokenizer is None or "transformers" in sys.modules:
        return function(*arguments)
    with processes(1) as pool:
        return pool.submit(function, *arguments).result()


def settle() -> None:
    """A worker leaves Ctrl-C to the step, and uses one core."""
    import os

    import pyarrow as pa

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)


def fitting() -> int:
    """Processes for which the machine, or the container, has the cores and the memory."""
    cores, room = share.cpus(), share.memory()
    if room is None:
        return cores
    return max(1, min(cores, int((room - OF_ALL) // OF_ONE)))
