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

BYTES_OF_ALL, BYTES_OF_ONE = 0.7 * 2**30, 0.13 * 2**30
"""Bytes that prepare_data takes by itself, and more for each process; measured on text were
0.82 GiB with two processes and 1.53 with eight."""


def preload_if_large(data: Sequence[str], workers: int) -> None:
    """Begin to import what workers need, which takes seconds, if data files are local and large."""
    paths = chain.from_iterable(
        path.iterdir() if path.is_dir() else [path] for path in map(Path, data)
    )
    files = (path for path in paths if readers.holds_rows(path.name) and path.is_file())
    if workers > 1 and any(file.stat().st_size >= PARALLEL_FROM for file in files):
        preloading()


def preloading() -> BaseContext:
    """A context that starts processes from one that has imported everything, sharing its memory."""
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

    return ProcessPoolExecutor(count, preloading(), initializer=init_worker)


def in_worker(work: Work, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that needs the tokenizer, and return its result.

    A worker calls it unless transformers is loaded here already: loading takes seconds and 300 MB.
    """
    if work.tokenizer is None or "transformers" in sys.modules:
        return function(*arguments)
    with processes(1) as pool:
        return pool.submit(function, *arguments).result()


def init_worker() -> None:
    """Set up a worker: it ignores Ctrl-C, which the step handles, and uses one core."""
    import os

    import pyarrow as pa

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)


def process_count() -> int:
    """How many processes the cores and the memory of this machine or container allow."""
    cores, room = share.cpus(), share.memory()
    if room is None:
        return cores
    return max(1, min(cores, int((room - BYTES_OF_ALL) // BYTES_OF_ONE)))
