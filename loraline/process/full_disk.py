"""A disk without room, whoever met it: Python, SQLite, or MLflow, which tells of it in words."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
TOO_LARGE = errno.EFBIG
"""A file met the limit of `ulimit -f`, or of its file system."""

SQLITE, SQLITE_IO = 0, errno.EIO
"""Stand for what SQLite says in words of its own: no room, or a write that was refused."""

TOLD = re.compile(r"\[Errno (\d+)\] [^:\n]*(?:: '([^'\n]+)')?(?: -> '([^'\n]+)')?")
"""An OSError as text: its number, its file, and the file that was being written from that one."""

FEW = 2**20
"""Free bytes below which a disk is called full."""


def sentence(error: BaseException, store: str, *folders: Path) -> str | None:
    """What to tell of an exception that a full disk is behind; None if none is.

    SQLite names no file; its database is `store`. For any other error without a file, the disk is
    looked for among `folders` and the one for temporary files.
    """
    for number, place in met(error):
        if number == TOO_LARGE:
            file = f"the file {place}" if place else "a file"
            return (
                f"{file} may not grow any larger: the limit of `ulimit -f` or of the file system "
                "is reached; raise it and run it again"
            )
        if number == SQLITE_IO:
            return (
                f"{store} cannot be written (disk I/O error): its disk is full or broken, or the "
                "limit of `ulimit -f` is reached; mend that and run it again"
            )
        elsewhere = (tempfile.gettempdir(), *map(str, folders))
        full = store if number == SQLITE else place or next(filter(is_full, elsewhere), "")
        return f"the disk is full{f' at {full}' if full else ''}; free some space and run it again"
    return None


def met(error: BaseException) -> Iterator[tuple[int, str]]:
    """Number and file of each error about room, along the causes of an exception."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in (*FULL, TOO_LARGE):
            yield cause.errno, str(cause.filename2 or cause.filename or "")
        else:
            for number, source, target in TOLD.findall(str(cause)):
                if int(number) in (*FULL, TOO_LARGE):
                    yield int(number), target or source
            if "disk is full" in str(cause):
                yield SQLITE, ""
            if "sqlite3" in str(cause) and "disk I/O error" in str(cause):
                yield SQLITE_IO, ""
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def is_full(folder: str) -> bool:
    """Whether a folder's disk has next to no room; False for a folder that is not there."""
    try:
        return shutil.disk_usage(folder).free < FEW
    except OSError:
        return False
