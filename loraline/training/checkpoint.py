"""Checkpoints of a training: written without pickle, kept with the run, found again by its tags.

A checkpoint is a folder: the adapter as PEFT writes it, `trainer_state.json` as transformers writes
it, and the states of optimizer, learning rate schedule and random numbers as a safetensors file
and a JSON file each. A run's tag names its latest checkpoint, and is set only when all of it is in
the artifact store, so a half-written one is never found.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from loraline.errors import TryAgain, UserError
from loraline.process import signals
from loraline.tracking import runs
from loraline.tracking.settings import Settings
from loraline.tracking.store import is_outage, uri
from loraline.tracking.tags import CHECKPOINT, INPUTS, PROCESS, WORKFLOW_UID

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "checkpoints"
"""Artifact folder of a run with its latest checkpoint; gone when the training is finished."""


def write_state(state: Any, stem: Path) -> None:
    """Write nested dicts, lists and tuples of tensors and JSON values as two files of that stem."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(value, dict):
            return {"items": [[key, plain(v, f"{path}.{key}")] for key, v in value.items()]}
        if isinstance(value, list | tuple):
            name = "list" if isinstance(value, list) else "tuple"
            return {name: [plain(v, f"{path}.{i}") for i, v in enumerate(value)]}
        return value

    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(plain(state, "state")))
    save_file(tensors, stem.with_suffix(".safetensors"))


def read_state(stem: Path) -> Any:
    """What `write_state` wrote; tensors are on the CPU."""
    tensors = load_file(stem.with_suffix(".safetensors"))

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "items":
            return {key: whole(v) for key, v in content}
        sequence = [whole(v) for v in content]
        return sequence if kind == "list" else tuple(sequence)

    return whole(json.loads(stem.with_suffix(".json").read_text()))


def random_state() -> dict[str, Any]:
    """The state of the random numbers that training draws: torch's, on the CPU and the GPU."""
    state = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state["cuda"])


class KeepCheckpoints(TrainerCallback):
    """Saves a checkpoint every so often and when the process is told to stop, and uploads it.

    At the end of an epoch it is saved after the evaluation, so that a resumed training never has
    to make up for one.
    """

    def __init__(self, client: MlflowClient | None, run_id: str, minutes: float) -> None:
        self.client = client
        self.run_id = run_id
        self.interval = 60 * minutes
        self.saved_at = time.monotonic()
        self.stop_signal: signal.Signals | None = None
        self.due = False
        self.stopped = False

    def listen(self) -> None:
        """From now on SIGTERM ends the training after the step at hand, with a checkpoint."""

        def stop(signum: int, frame: Any) -> None:
            self.stop_signal = signal.Signals(signum)

        signal.signal(signal.SIGTERM, stop)
        signals.check()

    def stopped_early(self, state: Any) -> bool:
        """Whether a signal ended the training before its last step."""
        return self.stopped and state.global_step < state.max_steps

    def stop_name(self) -> str:
        return self.stop_signal.name if self.stop_signal else "another process"

    def is_due(self) -> bool:
        waited = time.monotonic() - self.saved_at
        return self.stop_signal is not None or waited >= self.interval

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        stopped, due = agree(args, self.stop_signal is not None, self.is_due())
        self.stopped |= stopped
        control.should_training_stop |= stopped
        self.due = due and state.global_step < state.max_steps
        if self.due and state.global_step % len(options["train_dataloader"]):
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.due and state.global_step % len(options["train_dataloader"]) == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.client is not None:
            name = f"step-{state.global_step}"
            upload(self.client, self.run_id, Path(args.output_dir, f"checkpoint-{name[5:]}"), name)
        self.saved_at = time.monotonic()


def agree(args: Any, stopped: bool, due: bool) -> tuple[bool, bool]:
    """What any of the processes says, said by all: they must leave the same step together."""
    if args.world_size == 1:
        return stopped, due
    votes = torch.tensor([stopped, due], dtype=torch.int, device=args.device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
    return bool(votes[0]), bool(votes[1])


def upload(client: MlflowClient, run_id: str, folder: Path, name: str) -> None:
    """Put a checkpoint into the artifact store; only then name it, and drop the one before."""
    previous = client.get_run(run_id).data.tags.get(CHECKPOINT)
    client.log_artifacts(run_id, str(folder), f"{FOLDER}/{name}")
    client.set_tag(run_id, CHECKPOINT, name)
    if previous and previous != name:
        delete(client, run_id, previous)


def delete(client: MlflowClient, run_id: str, name: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
    store.delete_artifacts(f"{FOLDER}/{name}")


def drop(client: MlflowClient, run_id: str) -> None:
    """Remove what a finished training needs no more."""
    if name := client.get_run(run_id).data.tags.get(CHECKPOINT):
        client.delete_tag(run_id, CHECKPOINT)
        delete(client, run_id, name)


def fetch(client: MlflowClient, run: Run, folder: Path) -> Path:
    """The latest checkpoint of an unfinished run, as local files under `folder`."""
    name = run.data.tags[CHECKPOINT]
    return runs.download(client, run.info.run_id, f"{FOLDER}/{name}", folder)


def tags(inputs: dict[str, str]) -> dict[str, str]:
    """Tags by which a run is found and judged when it has to be gone on with."""
    digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in inputs.items()}
    return {
        INPUTS: json.dumps(digests),
        PROCESS: f"{socket.gethostname()}:{os.getpid()}",
    }


def find(client: MlflowClient, profile: str, inputs: dict[str, str]) -> Run | None:
    """The interrupted training to go on with: the same profile, and nothing of `inputs` changed.

    Says on standard error why an interrupted training is left alone. Raises TryAgain when it is
    not interrupted at all, but at work on this machine.
    """
    for run in runs.unfinished_runs(client, "train_qlora", profile):
        at = f"run {run.info.run_id}, stopped at {run.data.tags[CHECKPOINT]},"
        if changed := changes(run, inputs):
            click.echo(f"{at} is not resumed: {changed} changed since", err=True)
        elif run.info.status == "RUNNING" and (reason := still_at_work(run)):
            click.echo(f"{at} is not resumed: {reason}", err=True)
        else:
            return run
    return None


def named(client: MlflowClient, run_id: str, inputs: dict[str, str]) -> Run:
    """The unfinished training `run_id`; a UserError says why it cannot be gone on with."""
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
    return run


def changes(run: Run, inputs: dict[str, str]) -> str:
    """Which inputs of an earlier run differ from these, in words; empty if none does."""
    before = json.loads(run.data.tags.get(INPUTS, "{}"))
    now = json.loads(tags(inputs)[INPUTS])
    return ", ".join(f"the {name}" for name in now if before.get(name) != now[name])


def still_at_work(run: Run) -> str:
    """Why a run that counts as running may not be taken over; empty if it may.

    A retry of a workflow never runs beside the try before it. Elsewhere a process of this machine
    can be asked, one of another machine cannot.
    """
    host, _, pid = run.data.tags.get(PROCESS, "").rpartition(":")
    workflow = run.data.tags.get(WORKFLOW_UID)
    if workflow and workflow == Settings().workflow_uid:
        return ""
    if host != socket.gethostname():
        return f"it may be running on {host or 'another machine'}; name it with --resume if not"
    if pid != str(os.getpid()) and Path("/proc", pid).exists():
        raise TryAgain(f"run {run.info.run_id} is being trained by process {pid}; wait for it")
    return ""
