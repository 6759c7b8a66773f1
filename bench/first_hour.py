"""How long the small things take: set-up, the smoke pipeline, an unchanged one, a server's start.

    python bench/first_hour.py --clone /path/to/a/fresh/clone
    python bench/first_hour.py --clone /path/to/a/clone --skip set-up

Each is the command of the README, run in a clone of its own, so that nothing is there that the
command would have to make. Prints the table of docs/performance.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

READY = "curl "
"""What `make serve` prints once both servers answer."""


class Measured(NamedTuple):
    """One line of the table."""

    name: str
    seconds: float
    limit: float


class Timed(NamedTuple):
    """A command of the README and the seconds that it should take at most."""

    name: str
    command: tuple[str, ...]
    limit: float


TIMED = {
    "set-up": Timed("`make install` in a fresh clone", ("make", "install"), 180),
    "first": Timed("`make pipeline`, the first one", ("make", "pipeline"), 90),
    "unchanged": Timed("`make pipeline`, unchanged", ("make", "pipeline"), 8),
    "serve": Timed("`make serve` until it answers", ("make", "serve"), 60),
}


@click.command()
@click.option(
    "--clone",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Clone to measure in; for the set-up one without .venv.  [default: here]",
)
@click.option("--skip", multiple=True, type=click.Choice(list(TIMED)), help="Leave one out.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, help="Unchanged runs; the best counts."
)
def first_hour(clone: Path, skip: tuple[str, ...], rounds: int) -> None:
    """Time the README's commands on this machine and print them beside their limits."""
    if not (clone / "Makefile").is_file():
        raise click.UsageError(f"--clone {clone} is no clone of this project")
    measured = []
    for name, timed in TIMED.items():
        if name in skip:
            continue
        measure: Callable[[Path, tuple[str, ...]], float] = until_ready if name == "serve" else run
        times = [measure(clone, timed.command) for _ in range(rounds if name == "unchanged" else 1)]
        measured.append(Measured(timed.name, min(times), timed.limit))
        click.echo(f"{timed.name}: {', '.join(f'{t:.1f}' for t in times)} s", err=True)
    click.echo(table(measured))


def run(clone: Path, command: tuple[str, ...]) -> float:
    """Seconds of a command; its output is shown where it fails."""
    started = time.monotonic()
    finished = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    if finished.returncode:
        click.echo(finished.stdout + finished.stderr, err=True)
        sys.exit(f"{' '.join(command)} ended with {finished.returncode}")
    return time.monotonic() - started


def until_ready(clone: Path, command: tuple[str, ...]) -> float:
    """Seconds from the start of a server until it says how to ask it; then it is ended."""
    started = time.monotonic()
    server = subprocess.Popen(
        command,
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    lines = []
    try:
        for line in server.stdout:
            lines.append(line)
            if line.strip().startswith(READY):
                return time.monotonic() - started
    finally:
        # Where this runs in the background, its children inherit that Ctrl-C is ignored.
        os.killpg(server.pid, signal.SIGTERM)
        server.stdout.close()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    click.echo("".join(lines), err=True)
    sys.exit(f"{' '.join(command)} ended before it answered")


def table(measured: list[Measured]) -> str:
    """The table of docs/performance.md."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, {os.cpu_count()} cores; "
        "`python bench/first_hour.py`:",
        "",
        "| | seconds | limit |",
        "|---|---|---|",
    ]
    lines += [f"| {each.name} | {each.seconds:.1f} | {each.limit:g} |" for each in measured]
    return "\n".join(lines)


if __name__ == "__main__":
    first_hour()
