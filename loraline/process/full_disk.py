"""Says in one sentence that a disk is full, whether Python, SQLite or MLflow noticed it."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

OS_ERROR = re.compile(r"\[Errno (\d+)\] [^:\n]*(?:: '([^'\n]+)')?(?: -> '([^'\n]+)')?")
"""An OSError in a message of MLflow: its number, its file, and the file that was copied from it."""

SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""numpy's message about a short write; it has no error number."""

NEXT_TO_NO_ROOM = 2**20
"""Free bytes below which a disk is called full."""


@dataclass(frozen=True)
class Cause:
    """The reason of a failed write."""

    problem: Literal["full", "too large", "database full", "database unwritable"]
    """A file is too large for `ulimit -f` or its file system; a database is SQLite's."""

    file: str = ""
    """The file that was being written, where the error names it."""


def sentence(error: BaseException, store: str, *folders: Path) -> str | None:
    """The message for an exception that a full disk caused; None for any other exception.

    SQLite names no file; its database is `store`. Where no other error names one either, the full
    disk is looked for among `folders` and the folder for temporary files.
    """
    cause = next(causes(error), None)
    if cause is None:
        return None
    if cause.problem == "too large":
        file = f"the file {cause.file}" if cause.file else "a file"
        return (
            f"{file} may not grow any larger: the limit of `ulimit -f` or of the file system "
            "is reached; raise it and run it again"
        )
    if cause.problem == "database unwritable":
        return (
            f"{store} cannot be written (disk I/O error): its disk is full or broken, or the "
            "limit of `ulimit -f` is reached; mend that and run it again"
        )
    if cause.problem == "database full":
        place = store
    else:
        candidates = (tempfile.gettempdir(), *map(str, folders))
        place = cause.file or next(filter(is_full, candidates), "")
    return f"the disk is full{f' at {place}' if place else ''}; free some space and run it again"


def causes(error: BaseException) -> Iterator[Cause]:
    """Failed writes that an exception and its causes report, the outermost first."""
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        if isinstance(current, OSError) and current.errno is not None:
            yield from by_number(current.errno, str(current.filename2 or current.filename or ""))
        yield from by_message(str(current))
        suppressed = current.__suppress_context__
        current = current.__cause__ or (None if suppressed else current.__context__)


def by_number(number: int, file: str) -> Iterator[Cause]:
    if number in NO_SPACE:
        yield Cause("full", file)
    elif number == errno.EFBIG:
        yield Cause("too large", file)


def by_message(message: str) -> Iterator[Cause]:
    """Causes that an exception has only as text: an OSError in MLflow's, and SQLite's."""
    for number, source, target in OS_ERROR.findall(message):
        yield from by_number(int(number), target or source)
    if SHORT_WRITE.search(message):
        yield Cause("full")
    if "disk is full" in message:
        yield Cause("database full")
    if "sqlite3" in message and "disk I/O error" in message:
        yield Cause("database unwritable")


def is_full(folder: str) -> bool:
    """Whether a folder's disk has next to no room; False for a folder that does not exist."""
    try:
        return shutil.disk_usage(folder).free < NEXT_TO_NO_ROOM
    except OSError:
        return False
