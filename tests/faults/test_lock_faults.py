"""The registered model's lock where the store loses answers, tears reads or cannot be written."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from cells import Cell
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, TEMPORARILY_UNAVAILABLE

from loraline.errors import TryAgain, UserError
from loraline.tracking import lock

MODEL = "some-lora"
LOCK = f"{MODEL}.lock"


@pytest.fixture
def client(workplace: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


def patched(monkeypatch: pytest.MonkeyPatch, name: str, changed: Callable[..., Any]) -> None:
    """Let a method of MLflow's client go through `changed`, which is given the method."""
    method = getattr(mlflow.MlflowClient, name)

    def call(client: mlflow.MlflowClient, *arguments: Any, **options: Any) -> Any:
        return changed(lambda: method(client, *arguments, **options), *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, name, call)


def test_who_made_the_lock_and_lost_the_answer_has_it(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(create: Callable[[], Any], *_: Any) -> None:
        create()
        raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)

    patched(monkeypatch, "create_registered_model", lost)
    started = time.monotonic()
    with lock.locked(client, MODEL, lease_seconds=30):
        assert time.monotonic() - started < 25


def test_a_lock_that_is_being_deleted_while_it_is_read_is_no_users_name(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_registered_model(LOCK, {lock.HOLDER: "elsewhere:1:abc"})
    torn = []

    def tear(read: Callable[[], Any], name: str) -> Any:
        entry = read()
        if name == LOCK and not torn:
            torn.append(entry)
            entry._tags = {}
            client.delete_registered_model(LOCK)
        return entry

    patched(monkeypatch, "get_registered_model", tear)
    with lock.locked(client, MODEL):
        assert torn


def test_a_registered_model_with_the_locks_name_is_still_said(client) -> None:
    client.create_registered_model(LOCK)
    with (
        pytest.raises(UserError, match=r"'some-lora\.lock' has the name that a lock needs"),
        lock.locked(client, MODEL),
    ):
        pass


def test_a_lease_is_renewed_while_work_goes_on(client) -> None:
    inside = threading.Event()
    most: list[bool] = []

    def other() -> None:
        inside.wait(30)
        with lock.locked(mlflow.MlflowClient(), MODEL, lease_seconds=4):
            most.append(over.is_set())

    over = threading.Event()
    # Held elsewhere, as its process ID is not looked for.
    waiting = threading.Thread(target=other)
    waiting.start()
    with lock.locked(client, MODEL, lease_seconds=4):
        inside.set()
        time.sleep(8.5)
        over.set()
    waiting.join(60)
    assert most == [True]


def test_a_database_that_another_program_holds_is_no_lock_of_somebody(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException(
            "(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE
        )

    for name in ("create_registered_model", "get_registered_model"):
        patched(monkeypatch, name, refuse)
    with (
        pytest.raises(TryAgain, match="was locked by another program; run it again"),
        lock.locked(client, MODEL, lease_seconds=0.2),
    ):
        pass


@pytest.mark.parametrize(
    "cell",
    [
        Cell("database is read-only", "quality_gate", "lock", 2, "cannot be written"),
        Cell("database is read-only", "evaluate", "start", 2, "cannot be written"),
    ],
    ids=str,
)
def test_a_database_that_cannot_be_written_is_said_at_once(
    cell: Cell, step, candidate, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    run_id = candidate()
    if cell.step == "evaluate":
        run_id = mlflow.get_run(run_id).data.tags["loraline.upstream"]
    patch_sqlite(monkeypatch, "attempt to write a readonly database")
    started = time.monotonic()
    result = step(cell.step, "--run-id", run_id)
    assert result.exit_code == cell.exit_code, result.output
    assert cell.sentence in result.stderr
    assert time.monotonic() - started < 30


def test_a_database_whose_disk_is_full_is_try_again_at_once(
    step, candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = candidate()
    patch_sqlite(monkeypatch, "database or disk is full")
    result = step("quality_gate", "--run-id", run_id)
    assert result.exit_code == 75
    assert "the disk is full at sqlite:///" in result.stderr


def patch_sqlite(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Let every write to the registry and of a new run fail as MLflow's SQLite store does."""

    def fails(*_: Any) -> None:
        try:
            raise sqlite3.OperationalError(reason)
        except sqlite3.OperationalError as error:
            message = f"(sqlite3.OperationalError) {error}"
            raise MlflowException(message, TEMPORARILY_UNAVAILABLE) from error

    for name in ("create_registered_model", "create_run"):
        patched(monkeypatch, name, fails)


def test_the_lock_of_a_gate_that_died_goes_with_the_gate_that_is_reused(
    step, candidate, client
) -> None:
    import os

    run_id = candidate()
    step("quality_gate", "--run-id", run_id)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    name = "mistral-7b-lora.lock"
    client.create_registered_model(name, {lock.HOLDER: f"{lock.pid_namespace()}:{pid}:abc"})
    assert "reused" in step("quality_gate", "--run-id", run_id).stdout
    assert name not in {result.name for result in client.search_registered_models()}
