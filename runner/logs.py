"""What a program writes: on to the terminal, and into a file beside the folder of its outputs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import click

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and movements of a terminal's cursor."""

LONGEST_LINE = 2**16


class Stream:
    """A pipe that takes the place of a program's standard output or error."""

    def __init__(self, terminal: IO[str], log: IO[bytes]) -> None:
        self.terminal, self.log = terminal, log
        self.line = b""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        asyncio.get_running_loop().add_reader(self.reader, self.copy)

    def copy(self) -> bool:
        """Pass on what is there; False if there is nothing, now or any more."""
        try:
            read = os.read(self.reader, LONGEST_LINE)
        except BlockingIOError:
            return False
        if not read:
            asyncio.get_running_loop().remove_reader(self.reader)
            return False
        click.echo(read, file=self.terminal, nl=False)
        *lines, self.line = (self.line + read).split(b"\n")
        self.keep(b"".join(final(line) + b"\n" for line in lines))
        if len(self.line) > LONGEST_LINE:
            self.line = final(self.line)[-LONGEST_LINE:]
        return True

    def keep(self, text: bytes) -> None:
        # On a full disk the program goes on, and what it says is seen all the same.
        with suppress(OSError):
            self.log.write(text)

    def close(self) -> None:
        """Pass on what the program has left, however many of its children have the pipe."""
        while self.copy():
            pass
        if self.line:
            self.keep(final(self.line) + b"\n")
        asyncio.get_running_loop().remove_reader(self.reader)
        os.close(self.reader)


def final(line: bytes) -> bytes:
    """A line as a terminal shows it at the end, when its progress bars are drawn."""
    return CONTROL.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])


class Writers:
    """The ends of the two pipes that a program writes to."""

    def __init__(self, output: int, error: int) -> None:
        self.output, self.error = output, error

    def close(self) -> None:
        """Leave them to the program."""
        os.close(self.output)
        os.close(self.error)


@contextmanager
def logged(file: Path) -> Iterator[Writers]:
    """Where a program is to write, for as long as it runs; attempts are one after another."""
    with file.open("ab", buffering=0) as log:
        streams = [Stream(terminal, log) for terminal in (sys.stdout, sys.stderr)]
        try:
            yield Writers(*(stream.writer for stream in streams))
        finally:
            for stream in streams:
                stream.close()


def terminal() -> dict[str, str]:
    """Variables by which rich draws its bars through a pipe, where they are seen."""
    if not sys.stderr.isatty():
        return {}
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": str(columns)}
