"""A progress bar for long work, silent when standard error is not a terminal.

Under Argo the main bar of a step also fills the file named by ARGO_PROGRESS_FILE, as `done/total`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loraline.process import signals


@contextmanager
def bar(
    description: str, total: int, *, main: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """Show a bar while the block runs; call the yielded function with (units done, a remark).

    `main` is for the one bar of a step that Argo shows.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(description, total=total, remark="")

        file = os.environ.get("ARGO_PROGRESS_FILE") if main else None
        written = 0.0

        def advance(units: int, remark: str = "") -> None:
            nonlocal written
            signals.check()
            progress.update(task, advance=units, remark=remark)
            done = round(progress.tasks[0].completed)
            # The executor looks every few seconds; finer steps than these are for nobody.
            if file and (time.monotonic() - written > 0.1 or done == total):
                Path(file).write_text(f"{done}/{total}")
                written = time.monotonic()

        yield advance
