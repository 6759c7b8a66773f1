"""The model registry's rules: one version a logged model, and aliases that move one at a time.

`candidate` is the last version that passed the gate, `champion` the one that a person promoted.
`previous` is what to go back to: the champion before, or, as long as nothing was promoted, the
candidate before.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loraline import tracking
from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
CHAMPION = "champion"
PREVIOUS = "previous"

PROMOTED = "loraline.promoted"
PROMOTED_GATE = "loraline.promoted.gate_run_id"
"""The gate run that a version was promoted by: what a rollback goes by, whatever came later."""

ROLLED_BACK = "loraline.rolled_back"

LOCK_SUFFIX = ".lock"
HOLDER = "loraline.lock.holder"
LEASE_SECONDS = 60.0
"""A lock whose holder has not let go for so long belongs to one that died; holders take seconds."""

POLL_SECONDS = 0.2

LOST_RACES = (
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    # A row that another process deleted between the store's own two statements.
    "BAD_REQUEST",
    # SQLite while another process writes.
    "TEMPORARILY_UNAVAILABLE",
)
"""MLflow's error codes for writes that another process was quicker with."""


def known(client: MlflowClient, name: str) -> None:
    """Raises UserError, with names that there are, if there is no such registered model."""
    from mlflow.exceptions import MlflowException

    try:
        if HOLDER not in client.get_registered_model(name).tags:
            return
    except MlflowException as error:
        # A name that MLflow takes for none is an invalid parameter.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    found = client.search_registered_models()
    names = [each.name for each in found if HOLDER not in each.tags] + ["..."] * bool(found.token)
    told = ", ".join(names) or "none"
    raise UserError(f"there is no registered model {name!r} in {tracking.uri()}; found: {told}")


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points at, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # Asked for an alias that is not set, MLflow says "invalid parameter".
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def version_of_model(client: MlflowClient, name: str, model_id: str) -> str | None:
    """The version that a logged model is registered as, if it is."""
    found = client.search_model_versions(f"name = '{name}'")
    versions = [int(entry.version) for entry in found if entry.source == f"models:/{model_id}"]
    return str(min(versions)) if versions else None


def register(client: MlflowClient, name: str, model_id: str) -> str:
    """The version of a logged model, made if there is none; the caller holds the lock."""
    import mlflow

    version = version_of_model(client, name, model_id)
    if version is None:
        # Registering by model ID keeps the link from the version to the run and its metrics.
        version = str(mlflow.register_model(f"models:/{model_id}", name).version)
    return version


def describe(
    client: MlflowClient, name: str, version: str, tags: Mapping[str, str], card: str
) -> None:
    """Say the last verdict on a version, in its tags and in its description alike."""
    client.update_model_version(name, version, card)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def withdraw(client: MlflowClient, name: str, version: str) -> None:
    """Take `candidate` from a version that was rejected after all; the caller holds the lock.

    A champion stays: a person put it there.
    """
    candidate = version_of(client, name, CANDIDATE)
    if candidate is not None and str(candidate.version) == version:
        client.delete_registered_model_alias(name, CANDIDATE)


def move_candidate(client: MlflowClient, name: str, version: str) -> None:
    """Point `candidate` at a version; the caller holds the lock.

    Every order of its writes can be cut anywhere and repeated: `previous` is written first, from
    what `candidate` still says.
    """
    before = version_of(client, name, CANDIDATE)
    if before is not None and str(before.version) == version:
        return
    if before is not None and version_of(client, name, CHAMPION) is None:
        client.set_registered_model_alias(name, PREVIOUS, str(before.version))
    client.set_registered_model_alias(name, CANDIDATE, version)


@contextmanager
def locked(client: MlflowClient, name: str, lease_seconds: float | None = None) -> Iterator[None]:
    """Hold the registered model's lock, on whatever machines the others are.

    The lock is a registered model of its own beside it: the store lets one of several create it,
    since names are unique. A lock whose holder died is deleted (see `clear`) and then made anew.
    The lease is not renewed: a holder that stands still for longer than `lease_seconds`,
    LEASE_SECONDS unless given, may find that another went on. Raises TryAgain when the lock is not
    to be had.
    """
    lock = f"{name}{LOCK_SUFFIX}"
    with held(client, lock, LEASE_SECONDS if lease_seconds is None else lease_seconds) as holder:
        sweep(client, lock, holder)
        yield


@contextmanager
def held(client: MlflowClient, lock: str, lease_seconds: float) -> Iterator[str]:
    """Hold one entry of the registry, and give its holder, a name that never comes again."""
    holder = f"{place()}:{os.getpid()}:{uuid.uuid4().hex}"
    acquire(client, lock, holder, lease_seconds)
    try:
        yield holder
    finally:
        delete_held(client, lock, holder)


def acquire(client: MlflowClient, lock: str, holder: str, lease_seconds: float) -> None:
    """Create the lock's entry, waiting for another holder to delete it or to be found dead."""
    seen, since = None, time.monotonic()
    deadline = since + 4 * lease_seconds
    while time.monotonic() < deadline:
        with races_lost():
            client.create_registered_model(
                lock, {HOLDER: holder}, "Held while an alias is moved; gone in seconds."
            )
            return
        found = holder_of(client, lock)
        if found != seen:
            seen, since = found, time.monotonic()
        if found and (is_dead(found) or time.monotonic() - since > lease_seconds):
            clear(client, lock, found, lease_seconds)
        else:
            time.sleep(POLL_SECONDS)
    raise TryAgain(f"registered model {lock.removesuffix(LOCK_SUFFIX)!r} is locked by {seen}")


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
    own = breaking(lock, holder)
    # In LIKE, an underscore of the name stands for any character, and a model may be named alike.
    of_the_lock = re.compile(rf"{re.escape(lock)}(-[0-9a-f]{{32}})+")
    for found in client.search_registered_models(f"name LIKE '{lock}-%'"):
        if of_the_lock.fullmatch(found.name) and not found.name.startswith(own):
            with races_lost():
                client.delete_registered_model(found.name)


def holder_of(client: MlflowClient, lock: str) -> str | None:
    """Who holds a lock; None if nobody does, or no longer by the time that is read.

    Raises UserError if the name belongs to a registered model that is no lock.
    """
    with races_lost():
        holder = client.get_registered_model(lock).tags.get(HOLDER)
        if holder is None:
            raise UserError(
                f"registered model {lock!r} has the name that a lock needs: rename it in MLflow"
            )
        return holder
    return None


@contextmanager
def races_lost() -> Iterator[None]:
    """Go on where a lock's entry is there already, is gone, or changed under the store's hands."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in LOST_RACES:
            raise


def place() -> str:
    """Where process IDs are unique: this machine, and the container in it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.readlink().name if namespace.exists() else ''}"


def is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine or container that has ended."""
    host, pid, _ = holder.rsplit(":", 2)
    if host != place():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def audit(client: MlflowClient, name: str, told: str) -> None:
    """Write one line of the registered model's history, a tag that nothing overwrites."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    client.set_registered_model_tag(name, f"{tracking.AUDIT}.{at}.{uuid.uuid4().hex[:4]}", told)


def other_champion(client: MlflowClient, name: str, model_id: str) -> ModelVersion | None:
    """The champion, unless it is this logged model itself."""
    found = version_of(client, name, CHAMPION)
    return None if found is None or found.source == f"models:/{model_id}" else found


def gate_run_of(version: ModelVersion) -> str:
    """The gate run that passed a version; a UserError if none did, or a later one rejected it."""
    told = f"version {version.version} of {version.name!r}"
    if version.tags.get(tracking.RESULT) == "failed":
        raise UserError(f"{told} was rejected: {version.tags.get(tracking.REASON)}")
    if tracking.GATE_RUN not in version.tags:
        raise UserError(f"{told} did not come through quality_gate: its alias was set by hand")
    return version.tags[tracking.GATE_RUN]


def promoting_gate_run_of(version: ModelVersion) -> str:
    """The gate run that a champion, of today or before, was promoted by.

    A later verdict on it does not count: judged again, an old champion is no better than its
    successor, which says nothing against going back to it. A version whose alias was set by hand
    was promoted by nothing and is held to its last verdict, as by `gate_run_of`.
    """
    return version.tags.get(PROMOTED_GATE) or gate_run_of(version)


def promote(client: MlflowClient, name: str, reviewed: str | None, by: str) -> str:
    """Make the candidate the champion and the champion before it `previous`; return its version.

    `reviewed` is the version that a person looked at: another candidate is refused with a
    UserError, and so is one that was rolled back, unless `reviewed` names it. The caller holds the
    lock. Cut anywhere, it can be repeated.
    """
    candidate = version_of(client, name, CANDIDATE)
    if reviewed is not None and (candidate is None or str(candidate.version) != reviewed):
        raise UserError(why_not(client, name, reviewed, candidate))
    if candidate is None:
        raise UserError(f"registered model {name!r} has no candidate: nothing to promote")
    version = str(candidate.version)
    gate_run = gate_run_of(candidate)
    before = version_of(client, name, CHAMPION)
    if before is not None and str(before.version) == version:
        return version
    if reviewed is None and ROLLED_BACK in candidate.tags:
        raise UserError(
            f"version {version} of {name!r} was rolled back {candidate.tags[ROLLED_BACK]}: "
            f"to promote it again, name it with --version {version}"
        )
    replaced = str(before.version) if before else "none"
    audit(client, name, f"champion {replaced} -> {version}: promoted by {by}")
    client.set_model_version_tag(name, version, PROMOTED, f"by {by}, replacing {replaced}")
    client.set_model_version_tag(name, version, PROMOTED_GATE, gate_run)
    if ROLLED_BACK in candidate.tags:
        client.delete_model_version_tag(name, version, ROLLED_BACK)
    if before is not None:
        client.set_registered_model_alias(name, PREVIOUS, replaced)
    elif version_of(client, name, PREVIOUS) is not None:
        client.delete_registered_model_alias(name, PREVIOUS)
    client.set_registered_model_alias(name, CHAMPION, version)
    return version


def why_not(client: MlflowClient, name: str, reviewed: str, candidate: ModelVersion | None) -> str:
    """Why a version that a person named is not promoted: it is none, was rejected, or has no alias.

    `candidate` is the version that has the alias, if any has it.
    """
    found = client.search_model_versions(f"name = '{name}'")
    versions = {str(each.version): each for each in found}
    if reviewed not in versions:
        there = ", ".join(sorted(versions, key=int)) or "none"
        return f"registered model {name!r} has no version {reviewed}; found: {there}"
    tags = versions[reviewed].tags
    if tags.get(tracking.RESULT) == "failed":
        return f"version {reviewed} of {name!r} was rejected: {tags.get(tracking.REASON)}"
    if candidate is None:
        return f"registered model {name!r} has no candidate: nothing to promote"
    named = candidate.version
    return f"the candidate of {name!r} is version {named}, not {reviewed}: review it first"


def roll_back(client: MlflowClient, name: str, by: str) -> str:
    """Make `previous` the champion again; return its version.

    It asks for what `previous` was promoted by, not for verdicts that came later. `previous` is
    gone afterwards, so that a repeated call never goes back two steps. Raises UserError when there
    is nothing to go back to. The caller holds the lock.
    """
    champion, previous = (version_of(client, name, alias) for alias in (CHAMPION, PREVIOUS))
    if champion is None or previous is None:
        missing = CHAMPION if champion is None else PREVIOUS
        raise UserError(f"registered model {name!r} has no {missing}: nothing to go back to")
    promoting_gate_run_of(previous)
    version, replaced = str(previous.version), str(champion.version)
    if version != replaced:
        audit(client, name, f"champion {replaced} -> {version}: rolled back by {by}")
        client.set_model_version_tag(name, replaced, ROLLED_BACK, f"by {by}, to {version}")
        client.set_registered_model_alias(name, CHAMPION, version)
    client.delete_registered_model_alias(name, PREVIOUS)
    return version
