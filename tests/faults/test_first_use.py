"""A SQLite store appears whole or not at all, whoever else makes it and whenever that dies."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import children
import pytest
from cells import Cell

from loraline.errors import TryAgain, UserError
from loraline.tracking import store

FIRST_USE = [
    Cell("SIGKILL", "any", f"statement {number} of the first use", -9, "", "no database", "works")
    for number in (1, 40, 150, 400)
]


def in_a_process(work: Callable[[], object]) -> int:
    """Start some work in a forked process; return its ID."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except (UserError, TryAgain) as error:
        os._exit(error.exit_code)
    except BaseException:
        os._exit(70)
    os._exit(0)


def exit_code(pid: int, seconds: float = 120) -> int:
    """How the process ended. It may never: a fork copies locks that other threads hold."""
    code = children.exit_code(pid, seconds)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"process {pid} did not end in {seconds:g} s")
    return code


def die_at_statement(number: int) -> None:
    """Kill this process, as the kernel would, before its n-th statement to any database."""
    import sqlalchemy

    statements = 0

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def counted(*arguments: object) -> None:
        nonlocal statements
        statements += 1
        if statements == number:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def no_store(workplace: Path) -> Path:
    """The place of the default store, which does not exist yet."""
    import mlflow.store.tracking.sqlalchemy_store

    # Imported before the processes are forked, so that each need not.
    assert mlflow.store.tracking.sqlalchemy_store
    shutil.rmtree(workplace / "mlruns")
    return workplace / "mlruns" / "mlflow.db"


def test_a_kill_in_the_first_use_leaves_a_store_that_works(no_store: Path) -> None:
    for cell in FIRST_USE:
        number = int(cell.moment.split()[1])
        pid = in_a_process(lambda number=number: (die_at_statement(number), store.connect()))
        assert exit_code(pid) == cell.exit_code, cell
        assert not no_store.exists(), cell
    assert exit_code(in_a_process(store.connect)) == 0
    assert {file.name for file in no_store.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_first_uses_at_once_all_work(no_store: Path) -> None:
    pids = [in_a_process(store.connect) for _ in range(3)]
    assert [exit_code(pid) for pid in pids] == [0, 0, 0]
    with closing(sqlite3.connect(no_store)) as database:
        names = database.execute("SELECT name FROM experiments ORDER BY name").fetchall()
    assert names == [("Default",), ("vllm-lora-training",)]


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE _alembic_tmp_runs (a INTEGER)",),
        ("DROP TABLE webhooks",),
        ("UPDATE alembic_version SET version_num = '451aebb31d03'",),
    ],
    ids=["two at once", "killed early", "killed late"],
)
def test_a_store_that_was_left_half_made_is_recognised(
    workplace: Path, statements: tuple[str, ...]
) -> None:
    database = workplace / "mlruns" / "mlflow.db"
    change(database, *statements)
    message = (
        f"{database} was left half made by a first run that was stopped, and holds no run: delete "
        "it and run it again"
    )
    with pytest.raises(UserError) as error:
        store.connect()
    assert str(error.value) == message


def test_a_store_of_another_mlflow_is_upgraded_by_its_owner_alone(workplace: Path) -> None:
    database = workplace / "mlruns" / "mlflow.db"
    store.connect()
    run = "INSERT INTO runs (run_uuid, experiment_id) VALUES ('a', 0)"
    change(database, run, "DROP TABLE webhooks")
    before = database.read_bytes()
    with pytest.raises(UserError, match="keep a copy of it, then run `mlflow db upgrade sqlite:"):
        store.connect()
    assert database.read_bytes() == before


def test_a_file_that_is_no_database_is_said(workplace: Path) -> None:
    (workplace / "mlruns" / "mlflow.db").write_text("not a database\n" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be used: file is not a database"):
        store.connect()


def test_an_empty_file_becomes_a_store(no_store: Path) -> None:
    no_store.parent.mkdir()
    no_store.touch()
    assert exit_code(in_a_process(store.connect)) == 0
    assert no_store.stat().st_size > 0


def test_a_store_that_another_process_has_locked_is_try_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraline.tracking import sqlite_store

    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.2)
    database = workplace / "mlruns" / "mlflow.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TryAgain, match=r"mlflow\.db does not answer: database is locked"):
            store.connect()
        other.execute("ROLLBACK")
    store.connect()


def test_two_who_make_one_experiment_both_have_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    create = mlflow.MlflowClient.create_experiment

    def late(client: mlflow.MlflowClient, name: str, **options: object) -> str:
        create(client, name, **options)
        return create(client, name, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", late)
    client = store.connect()
    assert client.get_experiment_by_name("vllm-lora-training") is not None


def test_a_store_that_is_made_by_a_process_that_stands_still_is_try_again(
    no_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    from loraline.tracking import sqlite_store

    monkeypatch.setattr(sqlite_store, "MAKING_SECONDS", 0.2)
    no_store.parent.mkdir()
    started = threading.Event()
    ended = threading.Event()

    def keep_lock() -> None:
        with FileLock(no_store.with_name(".mlflow.db.lock")):
            started.set()
            ended.wait(30)

    holder = threading.Thread(target=keep_lock)
    holder.start()
    started.wait(30)
    began = time.monotonic()
    with pytest.raises(TryAgain, match="is being made by another process"):
        store.connect()
    assert time.monotonic() - began < 10
    ended.set()
    holder.join()
