"""The lock that the registry keeps, and the aliases that move under it."""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from loraline.errors import TryAgain, UserError
from loraline.tracking import lock as tracking_lock
from loraline.tracking import registry

MODEL = "some-lora"
LOCK = f"{MODEL}.lock"


@pytest.fixture
def client(workplace: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


def names(client: mlflow.MlflowClient) -> set[str]:
    return {result.name for result in client.search_registered_models()}


def put_lock(client: mlflow.MlflowClient, holder: str, lock: str = LOCK) -> None:
    client.create_registered_model(lock, {tracking_lock.HOLDER: holder})


def dead() -> str:
    """A holder whose process has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return f"{tracking_lock.pid_namespace()}:{pid}:{uuid.uuid4().hex}"


def test_a_lock_leaves_nothing_behind(client) -> None:
    with tracking_lock.locked(client, MODEL):
        assert names(client) == {LOCK}
    assert names(client) == set()


def test_a_lock_is_let_go_when_its_work_fails(client) -> None:
    with pytest.raises(ZeroDivisionError), tracking_lock.locked(client, MODEL):
        _ = 1 / 0
    assert names(client) == set()


def test_one_at_a_time_is_inside(client) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with tracking_lock.locked(client, MODEL):
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
    with tracking_lock.locked(client, MODEL), tracking_lock.locked(client, "another"):
        assert names(client) == {LOCK, "another.lock"}


def test_a_dead_holders_lock_is_taken_over_at_once(client) -> None:
    put_lock(client, dead())
    started = time.monotonic()
    with tracking_lock.locked(client, MODEL):
        assert time.monotonic() - started < tracking_lock.LEASE_SECONDS / 2
    assert names(client) == set()


def test_a_lock_of_another_machine_is_taken_over_after_its_lease(client) -> None:
    put_lock(client, "elsewhere:1:abc")
    started = time.monotonic()
    with tracking_lock.locked(client, MODEL, lease_seconds=0.6):
        assert time.monotonic() - started >= 0.6
    assert names(client) == set()


def test_the_lease_is_the_one_that_counts_at_that_moment(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_lock, "LEASE_SECONDS", 0.4)
    put_lock(client, "elsewhere:1:abc")
    started = time.monotonic()
    with tracking_lock.locked(client, MODEL):
        assert time.monotonic() - started < 20
    assert names(client) == set()


def test_of_several_who_find_a_dead_lock_one_is_inside_at_a_time(client) -> None:
    put_lock(client, "elsewhere:1:abc")
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with tracking_lock.locked(client, MODEL, lease_seconds=5):
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


def test_who_comes_late_to_a_dead_lock_does_not_break_the_next_holders(client) -> None:
    inside: list[str] = []
    overtook = threading.Event()
    others = ExitStack()

    class Late(mlflow.MlflowClient):
        """Reads who is dead; before it acts on that, others break the lock and take it."""

        overtaken = False

        def get_registered_model(self, name: str):
            result = super().get_registered_model(name)
            if not self.overtaken:
                self.overtaken = True
                with tracking_lock.locked(client, MODEL):
                    pass
                others.enter_context(tracking_lock.locked(client, MODEL))
                inside.append("C")
                overtook.set()
            return result

    def come_late() -> None:
        with tracking_lock.locked(Late(), MODEL):
            inside.append("B")

    put_lock(client, dead())
    thread = threading.Thread(target=come_late)
    with others:
        thread.start()
        assert overtook.wait(60)
        # Long enough for one whom nothing keeps out.
        time.sleep(1)
        assert inside == ["C"]
    thread.join(60)
    assert inside == ["C", "B"]
    assert names(client) == set()


def test_a_dead_lock_is_looked_at_and_deleted_by_one_at_a_time(client) -> None:
    others = []

    class Slow(mlflow.MlflowClient):
        """Another wants the lock between the look at its holder and its deletion."""

        def delete_registered_model(self, name: str) -> None:
            if name == LOCK and not others:
                next_one = threading.Thread(
                    target=tracking_lock.acquire, args=(client, LOCK, "elsewhere:1:next", 60)
                )
                others.append(next_one)
                next_one.start()
                # Long enough for one whom nothing keeps out.
                next_one.join(1)
            super().delete_registered_model(name)

    holder = dead()
    put_lock(client, holder)
    tracking_lock.clear(Slow(), LOCK, holder, 60)
    others[0].join(30)
    assert tracking_lock.holder_of(client, LOCK) == "elsewhere:1:next"


def test_a_lock_whose_making_lost_its_answer_is_held_at_once(client) -> None:
    class Lost(mlflow.MlflowClient):
        """The store made the entry; the answer was lost, and the second request hears of it."""

        def create_registered_model(self, name: str, *arguments):
            super().create_registered_model(name, *arguments)
            return super().create_registered_model(name, *arguments)

    with tracking_lock.locked(Lost(), MODEL, lease_seconds=0.3):
        assert names(client) == {LOCK}


def test_who_holds_a_lock_leaves_those_who_are_clearing_it(client) -> None:
    holder = f"elsewhere:1:{uuid.uuid4().hex}"
    clearing = tracking_lock.breaking(LOCK, holder)
    put_lock(client, "elsewhere:2:another", clearing)
    tracking_lock.sweep(client, LOCK, holder)
    assert names(client) == {clearing}


def test_a_lock_is_cleared_only_of_a_holder_that_died_here(client) -> None:
    pid = dead().split(":")[-2]
    for holder in (
        f"{tracking_lock.pid_namespace()}:{os.getpid()}:alive",
        f"elsewhere:{pid}:unknown",
    ):
        put_lock(client, holder)
        tracking_lock.clear_dead(client, MODEL)
        assert names(client) == {LOCK}
        client.delete_registered_model(LOCK)
    put_lock(client, dead())
    tracking_lock.clear_dead(client, MODEL)
    assert names(client) == set()


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_the_lock_of_one_who_died_while_breaking_a_dead_lock_is_taken_over(
    client, deaths: int
) -> None:
    lock = LOCK
    for _ in range(deaths):
        holder = dead()
        put_lock(client, holder, lock)
        lock = tracking_lock.breaking(lock, holder)
    with tracking_lock.locked(client, MODEL, lease_seconds=10):
        assert names(client) == {LOCK}
    assert names(client) == set()


def test_what_was_left_by_one_who_died_after_breaking_a_lock_is_swept(client) -> None:
    put_lock(client, dead(), tracking_lock.breaking(LOCK, dead()))
    with tracking_lock.locked(client, MODEL):
        assert names(client) == {LOCK}


def test_what_only_looks_like_a_locks_entry_stays(client) -> None:
    own = {"some-lora.lock-free", "some_lora.locksmith"}
    for name in own:
        client.create_registered_model(name)
    cleared = tracking_lock.breaking("someXlora.lock", dead())
    put_lock(client, dead(), cleared)
    with tracking_lock.locked(client, "some-lora.lock-free"):
        for name in ("some-lora", "some_lora"):
            with tracking_lock.locked(client, name):
                pass
        assert names(client) == own | {cleared, "some-lora.lock-free.lock"}


def test_a_model_with_the_name_that_a_lock_needs_is_named(client) -> None:
    client.create_registered_model(LOCK)
    with (
        pytest.raises(UserError, match=r"'some-lora\.lock' has the name that a lock needs"),
        tracking_lock.locked(client, MODEL),
    ):
        pass
    assert names(client) == {LOCK}


def test_entries_that_come_and_go_without_a_holder_are_no_users_model(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count()
    monkeypatch.setattr(
        client,
        "get_registered_model",
        lambda name: SimpleNamespace(tags={}, creation_timestamp=next(times)),
    )
    assert tracking_lock.tags_of(client, LOCK) == {}


def test_who_lost_the_lock_does_not_take_it_from_the_next(client) -> None:
    with tracking_lock.locked(client, MODEL):
        client.delete_registered_model(LOCK)
        put_lock(client, f"{tracking_lock.pid_namespace()}:{os.getpid()}:next")
    assert names(client) == {LOCK}


def test_a_lock_that_is_always_held_is_try_again(client, monkeypatch: pytest.MonkeyPatch) -> None:
    put_lock(client, "elsewhere:1:abc")
    delete = client.delete_registered_model

    def taken_again_at_once(name: str) -> None:
        delete(name)
        if name == LOCK:
            put_lock(client, "elsewhere:1:abc")

    monkeypatch.setattr(client, "delete_registered_model", taken_again_at_once)
    with (
        pytest.raises(TryAgain, match="the lock 'some-lora' is held by elsewhere:1:abc; run it"),
        tracking_lock.locked(client, MODEL, lease_seconds=0.2),
    ):
        pass


def test_an_alias_that_is_not_set_is_none(client) -> None:
    assert registry.version_of(client, MODEL, "candidate") is None
    client.create_registered_model(MODEL)
    assert registry.version_of(client, MODEL, "candidate") is None


def test_a_model_is_known_however_many_there_are_and_whatever_its_name(client) -> None:
    for number in range(101):
        client.create_registered_model(f"model-{number:03}")
    client.create_registered_model("some.locked.lora")
    for name in ("model-100", "some.locked.lora"):
        registry.check_exists(client, name)
    with pytest.raises(UserError, match=r"no registered model 'nothing' .*, model-099, \.\.\."):
        registry.check_exists(client, "nothing")


def test_an_alias_that_no_version_has_is_said_with_those_that_are_there(client) -> None:
    client.create_registered_model("mine")
    client.create_model_version("mine", "s3://none/of/this")
    client.set_registered_model_alias("mine", "candidate", "1")
    said = "version of registered model 'mine' has this alias; found: candidate (version 1)"
    assert str(registry.no_version(client, "mine", "best")).endswith(said)
    assert str(registry.no_version(client, "mine", "champion")).endswith(
        f"{said}, and `python steps/promote.py --model mine --version 1` makes it the champion"
    )


def test_a_lock_is_no_model(client) -> None:
    with (
        tracking_lock.locked(client, MODEL),
        pytest.raises(UserError, match=r"no registered model 'some-lora\.lock' .*found: none"),
    ):
        registry.check_exists(client, LOCK)
