"""The lock between steps that change one registered model, or open the run of one training."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loraline.errors import Stopped, TryAgain, UserError
from loraline.process import signals
from loraline.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SUFFIX = ".lock"
HOLDER = "loraline.lock.holder"
LEASE_SECONDS = 60.0
"""A lock whose holder has not let go for so long belongs to one that died; holders take seconds."""

RENEWED = "loraline.lock.renewed"
"""How often the holder has renewed its lease."""

POLL_SECONDS = 0.2

NAMELESS_READS = 5
"""Reads in a row without a holder after which an entry counts as a user's registered model."""

LOST_RACES = (
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    # A row that another process deleted between the store's own two statements.
    "BAD_REQUEST",
    # SQLite while another process writes.
    "TEMPORARILY_UNAVAILABLE",
)
"""MLflow's error codes for writes that another process was quicker with."""

FAILURES = ("TEMPORARILY_UNAVAILABLE",)
"""Those of LOST_RACES with which MLflow reports any failure of a database, too."""


@contextmanager
def locked(client: MlflowClient, name: str, lease_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of this name, on whatever machines the others are.

    `name` is a registered model, or what trainings with the same inputs have in common. The lock is
    a registered model of its own: the store lets one of several create it, since names are unique.
    A lock whose holder died is deleted (see `clear`) and then made anew.
    The lease, `lease_seconds` or else LEASE_SECONDS, is renewed while the work goes on; of a holder
    whose process is stopped or whose machine sleeps, another one takes the lock over.
    Raises TryAgain when the lock is not to be had.
    """
    lock = f"{name}{LOCK_SUFFIX}"
    lease = LEASE_SECONDS if lease_seconds is None else lease_seconds
    with held(client, lock, lease) as holder, renewed(client, lock, lease):
        sweep(client, lock, holder)
        yield


@contextmanager
def renewed(client: MlflowClient, lock: str, lease_seconds: float) -> Iterator[None]:
    """Renew a lock's lease from a thread, three times per lease."""
    finished = threading.Event()

    def renew() -> None:
        renewals = 0
        while not finished.wait(lease_seconds / 3):
            renewals += 1
            # Whatever the store answers: the next renewal may go through.
            with suppress(Exception):
                client.set_registered_model_tag(lock, RENEWED, str(renewals))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@contextmanager
def held(client: MlflowClient, lock: str, lease_seconds: float) -> Iterator[str]:
    """Hold one entry of the registry, and give its holder, a name that never comes again."""
    holder = f"{pid_namespace()}:{os.getpid()}:{uuid.uuid4().hex}"
    try:
        acquire(client, lock, holder, lease_seconds)
    except (Stopped, KeyboardInterrupt):
        # The lock may be made already.
        delete_held(client, lock, holder)
        raise
    try:
        yield holder
    finally:
        with signals.deferred():
            delete_held(client, lock, holder)


def acquire(client: MlflowClient, lock: str, holder: str, lease_seconds: float) -> None:
    """Create the lock's entry, waiting for another holder to delete it or to be found dead."""
    last_state: tuple[str | None, str | None] = None, None
    since = time.monotonic()
    deadline = since + 4 * lease_seconds
    while time.monotonic() < deadline:
        with races_lost():
            client.create_registered_model(
                lock,
                {HOLDER: holder},
                "Held while an alias is moved or a training's run is opened; gone in seconds.",
            )
            return
        tags = tags_of(client, lock)
        current, renewals = tags.get(HOLDER), tags.get(RENEWED)
        if current == holder:
            # The lock was made; the answer was lost, and MLflow's client asked again.
            return
        if (current, renewals) != last_state:
            last_state, since = (current, renewals), time.monotonic()
        if current is None and time.monotonic() - since > lease_seconds:
            # Nobody holds it, and it cannot be made.
            raise TryAgain(f"MLflow at {store.uri()} was locked by another program; run it again")
        if current and (is_dead(current) or time.monotonic() - since > lease_seconds):
            clear(client, lock, current, lease_seconds)
        else:
            time.sleep(POLL_SECONDS)
    name = lock.removesuffix(LOCK_SUFFIX)
    raise TryAgain(f"the lock {name!r} is held by {last_state[0] or 'somebody'}; run it again")


def clear(client: MlflowClient, lock: str, dead: str, lease_seconds: float) -> None:
    """Delete a dead holder's lock, and never that of one who came after it.

    The store can neither delete nor rename an entry on condition of its holder. So only who holds
    a second lock, named after the dead holder, may delete the first, and looks again inside:
    whoever comes late finds another holder, or none. A holder of the second lock that died is
    cleared in the same way, by a third.
    """
    with held(client, breaking(lock, dead), lease_seconds):
        delete_held(client, lock, dead)


def breaking(lock: str, holder: str) -> str:
    """The lock that has to be held to delete this holder's lock."""
    return f"{lock}-{holder.rpartition(':')[2]}"


def delete_held(client: MlflowClient, lock: str, holder: str) -> None:
    """Delete a lock if it is still this holder's."""
    if holder_of(client, lock) == holder:
        with races_lost():
            client.delete_registered_model(lock)


def sweep(client: MlflowClient, lock: str, holder: str) -> None:
    """Delete what died with those who were clearing locks of earlier holders.

    Nobody needs these any more: whoever gets one sees that the lock has another holder by now.
    """
    current = breaking(lock, holder)
    # In LIKE, an underscore of the name stands for any character, and a model may be named alike.
    of_the_lock = re.compile(rf"{re.escape(lock)}(-[0-9a-f]{{32}})+")
    for model in client.search_registered_models(f"name LIKE '{lock}-%'"):
        if of_the_lock.fullmatch(model.name) and not model.name.startswith(current):
            with races_lost():
                client.delete_registered_model(model.name)


def holder_of(client: MlflowClient, lock: str) -> str | None:
    """The holder of a lock; None if it has none, or had none any more when that was read."""
    return tags_of(client, lock).get(HOLDER)


def tags_of(client: MlflowClient, lock: str) -> dict[str, str]:
    """The tags of a lock's entry; empty if there is none.

    MLflow reads an entry and its tags in two statements, so that one which is being deleted shows
    no tags. Raises UserError if an entry that stays has no holder: a registered model of the user's
    stands where the lock goes.
    """
    created = None
    for _ in range(NAMELESS_READS):
        with races_lost():
            entry = client.get_registered_model(lock)
            if HOLDER in entry.tags:
                return dict(entry.tags)
            if created not in (None, entry.creation_timestamp):
                return {}
            created = entry.creation_timestamp
            time.sleep(POLL_SECONDS)
            continue
        return {}
    raise UserError(
        f"registered model {lock!r} has the name that a lock needs: rename it in MLflow"
    )


def clear_dead(client: MlflowClient, name: str) -> None:
    """Delete the lock of a dead process of this machine, where no step will acquire it again."""
    lock = f"{name}{LOCK_SUFFIX}"
    with suppress(UserError):
        holder = holder_of(client, lock)
        if holder is not None and is_dead(holder):
            clear(client, lock, holder, LEASE_SECONDS)


@contextmanager
def races_lost() -> Iterator[None]:
    """Go on where a lock's entry is there already, is gone, or changed under the store's hands."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in LOST_RACES:
            raise
        # A store that cannot be written at all is waited for in vain.
        if error.error_code in FAILURES and not store.is_locked(error):
            raise


def pid_namespace() -> str:
    """Where process IDs are unique: this machine, and the container in it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.readlink().name if namespace.exists() else ''}"


def is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine or container that has ended.

    Of a holder that no step has written nothing is known: it is waited for.
    """
    host, _, process = holder.rpartition(":")[0].rpartition(":")
    if host != pid_namespace() or not re.fullmatch(r"[1-9][0-9]{0,9}", process):
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
