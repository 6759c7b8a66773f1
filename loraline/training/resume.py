"""Which earlier run a training resumes, and the removal of what abandoned runs have left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from loraline.errors import TryAgain, UserError
from loraline.tracking import lease, lock, runs
from loraline.tracking.store import is_outage, uri
from loraline.tracking.tags import CHECKPOINT, INPUTS, LEASE, PROFILE, json_object
from loraline.training import checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def identity(inputs: dict[str, str]) -> dict[str, str]:
    """Tags by which a later training decides whether it can resume this run."""
    digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in inputs.items()}
    return {INPUTS: json.dumps(digests), **lease.tags()}


@contextmanager
def opened(
    client: MlflowClient,
    profile: str,
    inputs: dict[str, str],
    resume: str | None,
    *,
    force: bool,
    name: str,
    fingerprint: str,
    upstream: Run,
    tags: Mapping[str, str],
) -> Iterator[tuple[Run, Run | None, lease.Lease]]:
    """The run to train in, that run as it was before if it is resumed, and the lease on it.

    Of two trainings that start at once one opens a run; the other sees it and raises TryAgain.
    """
    with ExitStack() as stack:
        with lock.locked(client, f"train-{fingerprint[:16]}"):
            earlier = choose(client, profile, inputs, resume, force)
            run = stack.enter_context(
                runs.open_run(
                    "train_qlora",
                    name=name,
                    fingerprint=fingerprint,
                    upstream=upstream,
                    tags={PROFILE: profile, **tags, **identity(inputs)},
                    resumed=earlier,
                )
            )
        yield run, earlier, stack.enter_context(lease.held(client, run.info.run_id))


def choose(
    client: MlflowClient, profile: str, inputs: dict[str, str], resume: str | None, force: bool
) -> Run | None:
    """The unfinished training to resume: `resume`, or the latest with the same inputs.

    It has a checkpoint, or died before it had one; `force` begins anew instead. What the others
    have left is removed. Raises TryAgain when a training of the same inputs is running.
    """
    chosen = run_to_resume(client, resume, inputs) if resume else None
    for run in unfinished(client, profile):
        if changed := changes(run, inputs):
            if CHECKPOINT in run.data.tags:
                at = f"run {run.info.run_id}, stopped at {run.data.tags[CHECKPOINT]},"
                click.echo(f"{at} is not resumed: {changed} changed since", err=True)
            continue
        if not force:
            check_idle(run)
        usable = CHECKPOINT in run.data.tags or run.info.status == "RUNNING"
        if chosen is None and usable and not force:
            chosen = run
        elif chosen is None or run.info.run_id != chosen.info.run_id:
            sweep(client, run)
    if chosen is not None:
        delete_models(client, chosen)
    return chosen


def check_idle(run: Run) -> None:
    """Raise TryAgain when a process is at work on the run."""
    if holder := lease.holder(run):
        raise TryAgain(f"run {run.info.run_id} is being trained by {holder}; wait for it")


def unfinished(client: MlflowClient, profile: str) -> list[Run]:
    """Trainings of this profile that did not finish, the latest first."""
    query = f"tags.`{PROFILE}` = '{profile}' and attributes.status != 'FINISHED'"
    return runs.latest_runs(client, "train_qlora", query, 50)


def run_to_resume(client: MlflowClient, run_id: str, inputs: dict[str, str]) -> Run:
    """The unfinished training `run_id`; a UserError says why it cannot be resumed."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_outage(error):
            raise
        raise UserError(f"--resume {run_id!r} is not a run of {uri()}") from error
    if CHECKPOINT not in run.data.tags:
        raise UserError(f"--resume {run_id}: the run has no checkpoint ({run.info.status})")
    if changed := changes(run, inputs):
        raise UserError(f"--resume {run_id}: {changed} changed since; leave --resume out")
    check_idle(run)
    return run


def changes(run: Run, inputs: dict[str, str]) -> str:
    """Names of the inputs that differ from an earlier run's, for a message; empty if none does."""
    before = json_object(run.data.tags, INPUTS)
    current = json.loads(identity(inputs)[INPUTS])
    return ", ".join(f"the {name}" for name in current if before.get(name) != current[name])


def sweep(client: MlflowClient, run: Run) -> None:
    """Remove, once, what a dead training of the same inputs has left; its curves stay."""
    if LEASE not in run.data.tags or lease.holder(run):
        return
    delete_models(client, run)
    checkpoint.delete_all(client, run.info.run_id)
    if run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, "KILLED")
    client.delete_tag(run.info.run_id, LEASE)


def delete_models(client: MlflowClient, run: Run) -> None:
    """Delete the logged models of an unfinished run, complete or not: no step has used them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    of_run = f"source_run_id = '{run.info.run_id}'"
    for model in client.search_logged_models([run.info.experiment_id], of_run):
        get_artifact_repository(model.artifact_location).delete_artifacts()
        client.delete_logged_model(model.model_id)
