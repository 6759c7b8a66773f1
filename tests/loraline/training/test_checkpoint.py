"""A checkpoint that is damaged or lost costs the steps since the one before it, and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException

from loraline.tracking import store
from loraline.tracking.tags import CHECKPOINT, CHECKPOINTS_ASIDE
from loraline.training import checkpoint

FILES = ("adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json")


@pytest.fixture
def kept(workplace: Path, tmp_path: Path) -> tuple[Any, str, Path]:
    """A client, a run with the checkpoints of steps 2 and 4, and where the store has them."""
    client = store.connect()
    with mlflow.start_run() as run:
        for step in (2, 4):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            for name in FILES:
                (folder / name).write_text(f"{name} of step {step}")
            checkpoint.upload(client, run.info.run_id, folder, f"step-{step}")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    return client, run.info.run_id, artifacts / checkpoint.FOLDER


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} is cut": (lambda f, n=name: cut(f / n), f"{name} is not what") for name in FILES},
    "a file is gone": (lambda folder: (folder / FILES[0]).unlink(), f"{FILES[0]} is missing"),
    "a file is added": (
        lambda folder: (folder / "optimizer-1-of-2.json").write_text("{}"),
        "optimizer-1-of-2.json is not of it",
    ),
    "a file is added below": (
        lambda folder: (folder / "more").mkdir() or (folder / "more/sealed.json").write_text("{}"),
        "more/sealed.json is not of it",
    ),
    "the seal is gone": (lambda folder: (folder / checkpoint.SEAL).unlink(), "it has no readable"),
    "the seal is cut": (lambda folder: cut(folder / checkpoint.SEAL), "it has no readable"),
    "the folder is gone": (shutil.rmtree, "it is not in the artifact store"),
    "it is another run's": (lambda folder: checkpoint.seal(folder, "0" * 32), "it is one of run 0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_checkpoint_is_gone_on_from(
    damage: str,
    kept: tuple[Any, str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client, run_id, folder = kept
    harm, reason = DAMAGES[damage]
    harm(folder / "step-4")
    start = checkpoint.fetch(client, client.get_run(run_id), tmp_path / "here")
    assert start is not None and (start / FILES[0]).read_text() == f"{FILES[0]} of step 2"
    said = capsys.readouterr().err
    assert f"checkpoint step-4 of run {run_id} is put aside: {reason}" in said
    place = tmp_path / "here" / checkpoint.FOLDER
    assert list(place.iterdir()) == [start], "where the other processes look for it"
    aside = json.loads(client.get_run(run_id).data.tags[CHECKPOINTS_ASIDE])
    assert aside["step-4"].startswith(reason)

    harm(folder / "step-2")
    again = checkpoint.fetch(client, client.get_run(run_id), tmp_path / "again")
    assert again is None
    assert "step-4" not in capsys.readouterr().err, "it is not looked at again"


def test_the_last_two_checkpoints_are_kept_until_the_training_is_finished(
    kept: tuple[Any, str, Path], tmp_path: Path
) -> None:
    client, run_id, folder = kept
    (folder / "step-5").mkdir()
    (folder / "step-5" / FILES[0]).write_text("left by an upload that was killed")
    checkpoint.upload(client, run_id, tmp_path / "checkpoint-2", "step-6")
    assert sorted(path.name for path in folder.iterdir()) == ["step-4", "step-6"]
    assert client.get_run(run_id).data.tags[CHECKPOINT] == "step-6"
    checkpoint.delete_all(client, run_id)
    assert not client.list_artifacts(run_id) and CHECKPOINT not in client.get_run(run_id).data.tags


def test_a_checkpoint_in_the_store_takes_no_room_on_the_machine(
    kept: tuple[Any, str, Path], tmp_path: Path
) -> None:
    client, run_id, folder = kept
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-6")
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=6)
    checkpoint.KeepCheckpoints(None, "", 10).on_save(args, state, None)
    assert (tmp_path / "checkpoint-6").is_dir(), "another process uploads it"
    checkpoint.KeepCheckpoints(client, run_id, 10).on_save(args, state, None)
    assert (folder / "step-6" / FILES[0]).is_file()
    assert not (tmp_path / "checkpoint-6").exists()


def test_a_good_checkpoint_is_kept_beside_the_next_and_the_damaged_is_deleted(
    kept: tuple[Any, str, Path], tmp_path: Path
) -> None:
    client, run_id, folder = kept
    cut(folder / "step-4" / FILES[0])
    checkpoint.fetch(client, client.get_run(run_id), tmp_path / "here")
    checkpoint.upload(client, run_id, tmp_path / "checkpoint-2", "step-3")
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-3"]


def test_a_checkpoint_that_is_written_again_is_used_again(
    kept: tuple[Any, str, Path], tmp_path: Path
) -> None:
    client, run_id, folder = kept
    (folder / "step-4" / "optimizer-0-of-2.json").write_text("of a training on two cards")
    cut(folder / "step-4" / FILES[0])
    checkpoint.fetch(client, client.get_run(run_id), tmp_path / "here")
    checkpoint.upload(client, run_id, tmp_path / "checkpoint-4", "step-4")
    assert client.get_run(run_id).data.tags[CHECKPOINTS_ASIDE] == "{}"
    start = checkpoint.fetch(client, client.get_run(run_id), tmp_path / "again")
    assert start is not None and start.name == "step-4"
    files = {path.name for path in start.iterdir()}
    assert files == {*FILES, checkpoint.SEAL}, "nothing of an earlier upload is left"


def test_a_store_that_refuses_puts_no_checkpoint_aside(
    kept: tuple[Any, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id, _ = kept
    refused = "An error occurred (AccessDenied) when calling the GetObject operation: Access Denied"

    def download(*_: object) -> Path:
        raise MlflowException(refused)

    monkeypatch.setattr(checkpoint.runs, "download", download)
    with pytest.raises(MlflowException, match="AccessDenied"):
        checkpoint.fetch(client, client.get_run(run_id), tmp_path / "here")
    assert CHECKPOINTS_ASIDE not in client.get_run(run_id).data.tags


def test_a_checkpoint_says_its_size_and_what_it_takes_of_the_grace_period() -> None:
    """In float32: the weights that learn, two moments, and the best weights."""
    learned = [torch.empty(2**27, 2, device="meta"), torch.empty(2**28, device="meta")]
    assert checkpoint.described(learned) == "8.00 GiB, an upload of 164 s at 50 MiB a second"
