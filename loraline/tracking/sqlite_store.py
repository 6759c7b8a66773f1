"""MLflow's SQLite store: made under another name and renamed, so that it is whole or absent.

MLflow makes its tables in place, in dozens of migrations that SQLite does not keep in one
transaction. Two processes that do this at once, or one that is killed meanwhile, leave a database
that no later run can use.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from loraline.errors import TryAgain, UserError

MAKING_SECONDS = 300.0
"""How long to wait for another process that makes the store; it takes a few seconds."""

BUSY_SECONDS = 5.0
"""How long to wait for another process that holds the database locked."""


def file_of(store_uri: str) -> Path | None:
    """The database's file; None for a store of another kind, or in memory."""
    if not store_uri.startswith("sqlite:///"):
        return None
    path = store_uri.removeprefix("sqlite:///").partition("?")[0]
    return None if path in ("", ":memory:") else Path(path)


def make_ready(store_uri: str, artifacts: str) -> None:
    """Make the store if there is none; `artifacts` is where its default experiment keeps files.

    Raises UserError where its folder cannot be written, the database is not as MLflow left it or
    is a folder, TryAgain where another process has locked it.
    """
    file = file_of(store_uri)
    if file is None:
        return
    if file.is_dir():
        raise UserError(f"MLflow at {store_uri} cannot be used: {file} is a folder, and no file")
    try:
        if not exists(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            create(file, artifacts)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"no MLflow store can be made in {file.parent}: {error.strerror}"
        ) from error
    if sentence := table_problem(file, store_uri):
        raise UserError(sentence)


def exists(file: Path) -> bool:
    """Whether there is a database that somebody has written to."""
    return file.is_file() and file.stat().st_size > 0


def create(file: Path, artifacts: str) -> None:
    """Make the database under another name and rename it; a file lock admits one process."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=MAKING_SECONDS):
            if exists(file):
                return
            # Of those who died while they held the lock.
            for leftover in file.parent.glob(f".{file.name}.*.part*"):
                leftover.unlink(missing_ok=True)
            part = file.with_name(f".{file.name}.{os.getpid()}.part")
            make_tables(part, artifacts)
            part.replace(file)
    except Timeout as error:
        raise TryAgain(
            f"the MLflow store {file} is being made by another process for more than "
            f"{MAKING_SECONDS:.0f} s; run it again"
        ) from error


def make_tables(file: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    created = SqlAlchemyStore(f"sqlite:///{file}", artifacts)
    # A connection that stayed open would look for its journal under the name before.
    created.engine.dispose()


def table_problem(file: Path, store_uri: str, *, refused: bool = False) -> str | None:
    """What to do about a database whose tables are not MLflow's; None if nothing is wrong with it.

    MLflow would migrate it in place. `refused` says that MLflow has not taken it.
    """
    # Not from the module of Base: its tables are known once the models are imported.
    from mlflow.store.db.utils import Base

    try:
        tables, runs = contents(file)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise TryAgain(f"MLflow at {store_uri} does not answer: {error}") from error
        raise UserError(f"MLflow at {store_uri} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"MLflow at {store_uri} cannot be used: {error}") from error
    complete = set(Base.metadata.tables) <= tables
    if complete and not refused and not any(name.startswith("_alembic_tmp_") for name in tables):
        return None
    if not runs:
        return (
            f"{file} was left half made by a first run that was stopped, and holds no run: delete "
            "it and run it again"
        )
    return (
        f"the tables of {file} are of another MLflow: keep a copy of it, then run "
        f"`mlflow db upgrade {store_uri}`"
    )


def contents(file: Path) -> tuple[set[str], int]:
    """The names of a database's tables, and how many runs it holds."""
    # Not read-only: what a killed process began to write has to be taken back first.
    address = f"{file.resolve().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows}
        runs = 0
        if "runs" in tables:
            (runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
    return tables, runs
