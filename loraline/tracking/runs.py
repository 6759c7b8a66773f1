"""MLflow as the data plane: runs that know their step, their upstream run and their inputs.

Lineage is a linked list. Each run names the run before it in the tag `loraline.upstream`, and a
step's inputs and settings make a fingerprint, so that finished work is found instead of repeated.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loraline import contract
from loraline.contract import folder_digest
from loraline.errors import Stopped, TryAgain, UserError
from loraline.process import signals
from loraline.tracking import identity, lease
from loraline.tracking.store import is_outage, unfit, uri
from loraline.tracking.tags import (
    ADAPTER_DIGEST,
    FINGERPRINT,
    GIT_SHA,
    IMAGE,
    MODEL_ID,
    PIPELINE,
    PROCESS,
    STEP,
    UPSTREAM,
    WORKFLOW_NAME,
    WORKFLOW_UID,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


ADAPTER = Path("artifacts", "adapter")
"""Where a logged model keeps the adapter's files."""


def upstream_run(client: MlflowClient, run_id: str, step: str, flag: str = "--run-id") -> Run:
    """The finished run `run_id` of `step`; a UserError says what is wrong with any other."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_outage(error):
            raise
        raise UserError(f"{flag} {run_id!r} is not a run of MLflow at {uri()}") from error
    step_of_run = run.data.tags.get(STEP)
    if step_of_run != step:
        raise UserError(
            f"{flag} {run_id} is a run of {step_of_run or 'something else'}, expected one of {step}"
        )
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"{flag} {run_id} of {step} was deleted: restore it with "
            f"`mlflow runs restore --run-id {run_id}`, or name another"
        )
    if run.info.status != "FINISHED":
        raise UserError(f"{flag} {run_id} of {step} is {run.info.status}, expected a FINISHED run")
    return run


def ancestor(client: MlflowClient, run: Run, step: str) -> Run:
    """Follow the upstream tags from `run` back to the run of `step`.

    Raises UserError where the lineage ends before it or names a run that is gone.
    """
    from mlflow.exceptions import MlflowException

    visited = set[str]()
    while run.data.tags.get(STEP) != step:
        if run.info.run_id in visited:
            raise UserError(
                f"run {run.info.run_id} comes from itself by its tags {UPSTREAM}: another program "
                "has written into it; start again from the step before"
            )
        visited.add(run.info.run_id)
        if UPSTREAM not in run.data.tags:
            raise UserError(f"run {run.info.run_id} has no upstream run of {step}")
        before = run.data.tags[UPSTREAM]
        try:
            run = client.get_run(before)
        except MlflowException as error:
            if is_outage(error):
                raise
            raise UserError(
                f"run {run.info.run_id} came from run {before} (its tag {UPSTREAM}), which is not "
                f"in MLflow at {uri()}: restore it, or start again from the step before"
            ) from error
    return run


def finished_run(client: MlflowClient, step: str, fingerprint: str) -> Run | None:
    """The latest finished run of `step` with these inputs whose upstream run is still there."""
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'"
    for run in latest_runs(client, step, query, 20):
        upstream = run.data.tags.get(UPSTREAM)
        if upstream is None or is_active(client, upstream):
            return run
    return None


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether a run is in the store and was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_outage(error):
            raise
        return False


def latest_runs(client: MlflowClient, step: str, condition: str, most: int) -> list[Run]:
    """The experiment's runs of a step that meet a condition of MLflow's, the latest first."""
    from loraline.tracking.settings import Settings

    experiment = client.get_experiment_by_name(Settings().experiment)
    assert experiment is not None, "connect() creates the experiment"
    return list(
        client.search_runs(
            [experiment.experiment_id],
            f"tags.`{STEP}` = '{step}' and {condition}",
            order_by=["attributes.start_time DESC"],
            max_results=most,
        )
    )


FOREIGN_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_RUN_CONTEXT", "MLFLOW_ACTIVE_MODEL_ID")
"""Variables that `mlflow run`, or a job around this one, sets for its own run; MLflow would write
into that run."""


@contextmanager
def open_run(
    step: str,
    *,
    name: str,
    fingerprint: str,
    upstream: Run | None = None,
    parent: Run | None = None,
    tags: Mapping[str, str] | None = None,
    resumed: Run | None = None,
) -> Iterator[Run]:
    """The MLflow run of one step; an exception marks it FAILED, a signal KILLED.

    `upstream` is the run handed over to the step, `parent` the run it is nested under in the UI,
    `resumed` an unfinished run to continue instead of opening a new one.
    """
    import mlflow

    from loraline.tracking.settings import Settings

    settings = Settings()
    standard = {
        STEP: step,
        FINGERPRINT: fingerprint,
        WORKFLOW_NAME: settings.workflow_name,
        WORKFLOW_UID: settings.workflow_uid,
        IMAGE: settings.image,
        GIT_SHA: settings.git_sha or checkout_sha(),
        PROCESS: lease.this_process(),
    }
    if upstream is not None:
        standard[UPSTREAM] = upstream.info.run_id
        standard[PIPELINE] = upstream.data.tags.get(PIPELINE, "")
    for variable in FOREIGN_VARIABLES:
        os.environ.pop(variable, None)
    try:
        # Stopped in the middle of this, MLflow would call the run FINISHED at the end.
        with signals.deferred():
            run = mlflow.start_run(
                run_id=resumed.info.run_id if resumed else None,
                run_name=name,
                tags={key: value for key, value in (standard | dict(tags or {})).items() if value},
                parent_run_id=parent.info.run_id if parent else None,
                nested=parent is not None,
            )
            if upstream is None:
                mlflow.set_tag(PIPELINE, settings.workflow_uid or run.info.run_id)
        end_dead(mlflow.MlflowClient(), step, fingerprint, run)
        yield run
    except BaseException as error:
        stopped = signals.received or isinstance(error, TryAgain | Stopped | KeyboardInterrupt)
        with signals.deferred():
            mlflow.end_run("KILLED" if stopped else "FAILED")
        raise
    with signals.deferred():
        mlflow.end_run("FINISHED")


def end_dead(client: MlflowClient, step: str, fingerprint: str, run: Run) -> None:
    """End the other runs of these inputs whose process died before it could, as KILLED.

    One of them may be this process': MLflow's client asks again for a run when an answer is lost.
    """
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'RUNNING'"
    for other in latest_runs(client, step, query, 20):
        if other.info.run_id != run.info.run_id and lease.is_dead(other):
            client.set_terminated(other.info.run_id, "KILLED")


def checkout_sha() -> str:
    """Commit of the checkout that the library runs from; empty outside of one."""
    if shutil.which("git") is None:
        return ""
    answer = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip()


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for a download.

    When one file fails, MLflow's threads may still write others: what they leave is no error.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def artifacts(client: MlflowClient, run_id: str, path: str) -> Iterator[Path]:
    """A run's artifact folder as local files, gone after use."""
    with scratch() as folder:
        yield download(client, run_id, path, folder)


def download(client: MlflowClient, run_id: str, path: str, folder: Path) -> Path:
    """A run's artifact as a file or folder in `folder`.

    MLflow's own call for a run hides why it failed, a full disk and a lost server included.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    place = client.get_run(run_id).info.artifact_uri
    try:
        downloaded = mlflow.artifacts.download_artifacts(f"{place}/{path}", dst_path=str(folder))
    except MlflowException as error:
        if sentence := unfit(f"{path} of run {run_id}", error):
            raise UserError(sentence) from error
        raise
    return Path(downloaded)


MISSING = re.compile(r"No such (artifact|file)|NoSuchKey|Not Found|does not exist")
"""Messages of MLflow's stores about a file that they do not have."""


@contextmanager
def dataset(client: MlflowClient, data_run: Run, split: str | None = None) -> Iterator[Path]:
    """The dataset of a prepare_data run, or one split and the manifest, gone after use."""
    with scratch() as folder:
        yield download_dataset(client, data_run, folder, split)


def download_dataset(
    client: MlflowClient, data_run: Run, folder: Path, split: str | None = None
) -> Path:
    """The dataset of a prepare_data run as a folder in `folder`, held against its digests."""
    from mlflow.exceptions import MlflowException

    run_id = data_run.info.run_id
    try:
        if split is None:
            local = download(client, run_id, "dataset", folder)
        else:
            local = download(client, run_id, "dataset/manifest.json", folder / "dataset").parent
            download(client, run_id, f"dataset/{split}.parquet", local)
    except (FileNotFoundError, MlflowException) as error:
        if not MISSING.search(str(error)):
            raise
        change = f"a part of dataset/ of run {run_id} is missing"
        raise UserError(identity.changed("prepare_data", change)) from error
    identity.check_dataset(local, data_run, split)
    return local


def model_id(train_run: Run) -> str:
    """The ID of a training run's logged model."""
    model_id = train_run.data.tags.get(MODEL_ID)
    if not model_id:
        raise UserError(
            f"run {train_run.info.run_id} of train_qlora has no logged model: its tag {MODEL_ID} "
            "was removed; run train_qlora again with --force"
        )
    return model_id


@contextmanager
def adapter(train_run: Run, *later: Run) -> Iterator[Path]:
    """The adapter folder of a training run's logged model, gone after use.

    It is held against the digest that the training run and each later run keeps of it, and has to
    be this run's: a logged model says which run made it, and nobody can change that.
    """
    import mlflow

    model = model_id(train_run)
    with logged_adapter(model) as folder:
        maker = mlflow.MlflowClient().get_logged_model(model).source_run_id
        if maker != train_run.info.run_id:
            difference = f"logged model {model} was made by run {maker}"
            raise UserError(identity.changed("train_qlora", difference))
        digest = folder_digest(folder)
        for run in (train_run, *later):
            identity.expect(run, ADAPTER_DIGEST, digest, "the adapter")
        yield folder


@contextmanager
def logged_adapter(model: str) -> Iterator[Path]:
    """The adapter folder of a logged model (its ID) or of a registered one (NAME/VERSION), gone
    after use."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with scratch() as folder:
        try:
            # Without the code that is logged beside the adapter: some two hundred files.
            repository = get_artifact_repository(f"models:/{model}")
            if not repository.list_artifacts(ADAPTER.as_posix()):
                raise UserError(f"models:/{model} holds no adapter in {ADAPTER}")
            adapter = Path(repository.download_artifacts(ADAPTER.as_posix(), str(folder)))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" or model.startswith((".", "/")):
                raise UserError(f"models:/{model} is not in MLflow at {uri()}") from error
            if sentence := unfit(f"models:/{model}", error):
                raise UserError(sentence) from error
            raise
        except FileNotFoundError as error:
            raise UserError(f"models:/{model} cannot be downloaded: {error}") from error
        yield adapter


def check_same_adapter(step: str, name: str, version: str, adapter: Path) -> None:
    """Raise a UserError if an adapter is not the registered version's trained once more, as a run
    of `step` says."""
    with logged_adapter(f"{name}/{version}") as registered:
        if not contract.read(registered).is_served_as(contract.read(adapter)):
            difference = f"it is not served as version {version} of {name!r}, as its tag says"
            raise UserError(identity.changed(step, difference))


def page_address(run: Run, artifact: str) -> str:
    """Address of an artifact in MLflow's page, from wherever a reader has opened that page."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/{artifact}"


def hand_over(out_dir: Path, run_id: str, **outputs: str) -> None:
    """Write a step's outputs, one file each, the run ID last: the step's final act."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, value in [*outputs.items(), ("run-id", run_id)]:
        part = out_dir / f".{name}.part"
        part.write_text(value)
        part.replace(out_dir / name)
