"""Progress of long work: a bar in a terminal, a line each minute in a pod's or CI's log.

Under Argo the main bar of a step also fills the file named by ARGO_PROGRESS_FILE, as `done/total`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import click

from loraline.process import signals

LINE_EVERY = 60.0
"""Seconds between two lines in a log."""


class Lines:
    """The progress lines of a log: the beginning, the position each minute, the end."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total
        self.began = self.printed_at = time.monotonic()
        self.first: int | None = None
        click.echo(f"{description}: 0 of {total}", err=True)

    def advance(self, done: int, remark: str) -> None:
        """Print the position if the work is at its end or the last line is a minute old."""
        now = time.monotonic()
        if self.first is None:
            # A resumed training starts after the steps that it does not repeat.
            self.first = done if done > 1 else 0
        if done < self.total and now - self.printed_at < LINE_EVERY:
            return
        self.printed_at = now
        if done < self.total:
            each = (now - self.began) / max(1, done - self.first)
            seconds = each * (self.total - done)
            when = f"{timedelta(seconds=round(seconds))} left"
        else:
            when = f"done in {timedelta(seconds=round(now - self.began))}"
        facts = ", ".join(filter(None, (when, remark)))
        click.echo(f"{self.description}: {done} of {self.total}, {facts}", err=True)


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

        lines = None if console.is_terminal else Lines(description, total)
        file = os.environ.get("ARGO_PROGRESS_FILE") if main else None
        written = 0.0

        def advance(units: int, remark: str = "") -> None:
            nonlocal written
            signals.check()
            progress.update(task, advance=units, remark=remark)
            done = round(progress.tasks[0].completed)
            if lines is not None and units:
                lines.advance(done, remark)
            # The executor reads the file every few seconds, so finer steps are useless.
            if file and (time.monotonic() - written > 0.1 or done == total):
                Path(file).write_text(f"{done}/{total}")
                written = time.monotonic()

        yield advance
