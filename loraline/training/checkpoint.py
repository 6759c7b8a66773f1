"""Checkpoints of a training: written without pickle, kept with the run, found again by its tags.

A checkpoint is a folder: `trainer_state.json` as transformers writes it, and the states of what has
learned, of optimizer, learning rate schedule and random numbers as a safetensors file and a JSON
file each, sealed with their digests. A run's tag names its latest checkpoint, and is set
only when all of it is in the artifact store, so a half-written one is never found. A damaged or
lost checkpoint is put aside; the training resumes from the one before it, or begins anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from loraline.errors import TryAgain
from loraline.process import signals
from loraline.process.full_disk import sentence
from loraline.tracking import runs
from loraline.tracking.store import is_outage, refusal, uri
from loraline.tracking.tags import CHECKPOINT, CHECKPOINTS_ASIDE, json_object
from loraline.training import exchange, sharding

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "checkpoints"
"""Artifact folder of a run with its last two checkpoints; gone when the training is finished."""

NAME = re.compile(r"step-[0-9]{1,18}")
"""The name of a checkpoint, after the optimizer step that it was made at."""

UPLOAD = 50 * 2**20
"""Bytes a second that an upload is estimated with: an object store beside the cluster, used by
others too."""

SEAL = "sealed.json"
"""File of a checkpoint with the digests of all others and the run that they are of."""


class StoppedWithCheckpoint(TryAgain):
    """All processes of a training have left it in order, to go on from a checkpoint."""


def write_state(state: Any, stem: Path) -> None:
    """Write nested dicts, lists and tuples of tensors and JSON values as two files of that stem."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = sharding.local(value.detach()).cpu().contiguous().clone()
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

    def restored(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((form, content),) = value.items()
        if form == "tensor":
            return tensors[content]
        if form == "items":
            return {key: restored(v) for key, v in content}
        sequence = [restored(v) for v in content]
        return sequence if form == "list" else tuple(sequence)

    return restored(json.loads(stem.with_suffix(".json").read_text()))


def read_joined(folder: Path, name: str) -> Any:
    """A state that the first process has written, or each one its part (`name-RANK-of-WORLD`)."""
    if (folder / f"{name}.json").exists():
        return read_state(folder / name)
    parts = folder.glob(f"{name}-*-of-*.json")
    in_order = sorted(parts, key=lambda file: int(file.stem.split("-")[-3]))
    return sharding.joined([read_state(file.with_suffix("")) for file in in_order])


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
        """From now on SIGTERM ends the training after the current step, with a checkpoint."""

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

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        begins = exchange.highest([state.global_step, -state.global_step])
        assert begins[0] == -begins[1], (
            f"processes begin after the steps {-begins[1]} to {begins[0]}"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        # What any of the processes says is said by all: they must leave the same step together.
        stopped, due = map(bool, exchange.highest([self.stop_signal is not None, self.is_due()]))
        self.stopped |= stopped
        control.should_training_stop |= stopped
        self.due = due and state.global_step < state.max_steps
        if self.due and state.global_step % len(options["train_dataloader"]):
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.due and state.global_step % len(options["train_dataloader"]) == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Once this returns, all processes have written their part.
        exchange.highest([state.global_step])
        if self.client is not None:
            name = f"step-{state.global_step}"
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            upload(self.client, self.run_id, folder, name)
            # Kept here as well, the checkpoints of a day would fill the disk.
            shutil.rmtree(folder, ignore_errors=True)
        self.saved_at = time.monotonic()


def size(learned: Iterable[Tensor]) -> int:
    """Bytes of a checkpoint: what learns, Adam's two moments, and the best weights so far."""
    return sum(4 * parameter.numel() * parameter.element_size() for parameter in learned)


def described(learned: Iterable[Tensor]) -> str:
    """A checkpoint's size, and an estimate of its upload, for which a grace period needs room."""
    written = size(learned)
    return f"{written / 2**30:.2f} GiB, an upload of {written / UPLOAD:.0f} s at 50 MiB a second"


def seal(folder: Path, run_id: str) -> None:
    """Write down what a checkpoint consists of, and whose it is."""
    files = {name: digest(folder / name) for name in names_in(folder)}
    (folder / SEAL).write_text(json.dumps({"run": run_id, "files": files}, indent=2) + "\n")


def names_in(folder: Path) -> list[str]:
    """The files of a checkpoint without its seal."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file.relative_to(folder).as_posix() for file in files if file != folder / SEAL]


def defect(folder: Path, run_id: str) -> str:
    """Why a checkpoint is not what this run has written; an empty text if it is."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        run, files = sealed["run"], dict(sealed["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return f"it has no readable {SEAL}"
    if run != run_id:
        return f"it is one of run {run}"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest(folder / name) != expected:
            return f"{name} is not what was written"
    # A part of another group of processes, or a pickle, would be read as well.
    for name in names_in(folder):
        if name not in files:
            return f"{name} is not of it"
    return ""


def digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def upload(client: MlflowClient, run_id: str, folder: Path, name: str) -> None:
    """Put a checkpoint into the artifact store, and only then name it.

    The one before is kept for the case that this one cannot be read; what is older is deleted,
    and so is what an upload that was killed has left.
    """
    tags = client.get_run(run_id).data.tags
    aside, earlier = json_object(tags, CHECKPOINTS_ASIDE), stored(client, run_id)
    latest, good = tags.get(CHECKPOINT), [each for each in earlier if each not in (name, *aside)]
    spare = latest if latest in good else next(iter(good), None)
    if name in earlier:
        # It was put aside, or an upload was killed. Its files may be those of other processes.
        delete(client, run_id, f"{FOLDER}/{name}")
    seal(folder, run_id)
    client.log_artifacts(run_id, str(folder), f"{FOLDER}/{name}")
    if name in aside:
        del aside[name]
        client.set_tag(run_id, CHECKPOINTS_ASIDE, json.dumps(aside))
    client.set_tag(run_id, CHECKPOINT, name)
    for old in earlier:
        if old not in (name, spare):
            delete(client, run_id, f"{FOLDER}/{old}")


def stored(client: MlflowClient, run_id: str) -> list[str]:
    """Names of the checkpoints in a run's artifacts, whole or not, the latest first."""
    names = [Path(entry.path).name for entry in client.list_artifacts(run_id, FOLDER)]
    steps = [name for name in names if NAME.fullmatch(name)]
    return sorted(steps, key=lambda name: int(name.removeprefix("step-")), reverse=True)


def delete(client: MlflowClient, run_id: str, path: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
    store.delete_artifacts(path)


def delete_all(client: MlflowClient, run_id: str) -> None:
    """Remove all checkpoints of a training that needs them no more."""
    for name in (CHECKPOINT, CHECKPOINTS_ASIDE):
        if name in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, name)
    if client.list_artifacts(run_id, FOLDER):
        delete(client, run_id, FOLDER)


def fetch(client: MlflowClient, run: Run, folder: Path) -> Path | None:
    """The last good checkpoint of an unfinished run, if any, as the one folder in `folder`/FOLDER.

    One that cannot be used is named on standard error and in a tag of the run, and never looked
    at again.
    """
    run_id, place = run.info.run_id, folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    aside = json_object(run.data.tags, CHECKPOINTS_ASIDE)
    for name in dict.fromkeys([run.data.tags.get(CHECKPOINT), *stored(client, run_id)]):
        # A tag may hold anything, a path out of the folder included.
        if name is None or not NAME.fullmatch(name) or name in aside:
            continue
        try:
            start = runs.download(client, run_id, f"{FOLDER}/{name}", place)
            reason = defect(start, run_id)
        except Exception as error:
            refused = refusal(error) and not runs.MISSING.search(str(error))
            if is_outage(error) or refused or sentence(error, uri(), folder):
                raise
            start, reason = place / name, "it is not in the artifact store"
        if not reason:
            return start
        shutil.rmtree(start, ignore_errors=True)
        aside[name] = reason
        click.echo(f"checkpoint {name} of run {run_id} is put aside: {reason}", err=True)
        client.set_tag(run_id, CHECKPOINTS_ASIDE, json.dumps(aside))
    return None
