"""Progress of long work: a bar on a terminal, and a file where a workflow asks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar while the block runs; call the yielded function with (units done, a remark).

    The file that `ARGO_PROGRESS_FILE` names gets `done/total`; its reader shows the last line.
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
        file, done = os.environ.get("ARGO_PROGRESS_FILE"), 0

        def advance(units: int, remark: str = "") -> None:
            nonlocal done
            done += units
            progress.update(task, advance=units, remark=remark)
            if file and total > 0:
                Path(file).write_text(f"{min(done, total)}/{total}\n", encoding="ascii")

        yield advance
