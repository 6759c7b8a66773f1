"""The lock that the registry keeps, and the aliases that move under it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import mlflow
import pytest

from loraline import registry
from loraline.errors import TryAgain

MODEL = "some-lora"
LOCK = f"{MODEL}.lock"


@pytest.fixture
def client(workplace: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


def names(client: mlflow.MlflowClient) -> set[str]:
    return {found.name for found in client.search_registered_models()}


def hold(client: mlflow.MlflowClient, holder: str) -> None:
    client.create_registered_model(LOCK, {registry.HOLDER: holder})


def test_a_lock_leaves_nothing_behind(client) -> None:
    with registry.locked(client, MODEL):
        assert names(client) == {LOCK}
    assert names(client) == set()


def test_a_lock_is_let_go_when_its_work_fails(client) -> None:
    with pytest.raises(ZeroDivisionError), registry.locked(client, MODEL):
        _ = 1 / 0
    assert names(client) == set()


def test_one_at_a_time_is_inside(client) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with registry.locked(client, MODEL):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert names(client) == set()


def test_locks_of_two_models_are_apart(client) -> None:
    with registry.locked(client, MODEL), registry.locked(client, "another"):
        assert names(client) == {LOCK, "another.lock"}


def test_a_dead_holders_lock_is_taken_over_at_once(client) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    hold(client, f"{registry.place()}:{pid}:abc")
    started = time.monotonic()
    with registry.locked(client, MODEL):
        assert time.monotonic() - started < registry.LEASE_SECONDS / 2
    assert names(client) == set()


def test_a_lock_of_another_machine_is_taken_over_after_its_lease(client) -> None:
    hold(client, "elsewhere:1:abc")
    started = time.monotonic()
    with registry.locked(client, MODEL, lease_seconds=0.6):
        assert time.monotonic() - started >= 0.6
    assert names(client) == set()


def test_of_several_who_find_a_dead_lock_one_is_inside_at_a_time(client) -> None:
    hold(client, "elsewhere:1:abc")
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with registry.locked(client, MODEL, lease_seconds=2):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1, 1]
    assert names(client) == set()


def test_who_lost_the_lock_does_not_take_it_from_the_next(client) -> None:
    with registry.locked(client, MODEL):
        client.delete_registered_model(LOCK)
        hold(client, f"{registry.place()}:{os.getpid()}:next")
    assert names(client) == {LOCK}


def test_a_lock_that_is_always_held_is_try_again(client, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(client, "elsewhere:1:abc")
    monkeypatch.setattr(client, "rename_registered_model", lambda *names: time.sleep(0.1))
    with (
        pytest.raises(TryAgain, match="'some-lora' is locked by elsewhere:1:abc"),
        registry.locked(client, MODEL, lease_seconds=0.2),
    ):
        pass


def test_an_alias_that_is_not_set_is_none(client) -> None:
    assert registry.version_of(client, MODEL, "candidate") is None
    client.create_registered_model(MODEL)
    assert registry.version_of(client, MODEL, "candidate") is None
