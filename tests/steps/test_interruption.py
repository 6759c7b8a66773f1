"""A training that is stopped goes on where it was, and ends as if it had never been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from loraline import contract
from loraline.tracking import lease, runs, tags
from loraline.training import checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 36
"""Of two epochs over 288 rows, 16 a step."""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(workplace: Path, data_run: str) -> Start:
    """Start a training of a profile in a process of its own, which writes Argo's progress file."""

    def begin(
        profile: str, *options: str, minutes: float = 0, modules: Sequence[Path] = ()
    ) -> subprocess.Popen[str]:
        """`modules` are folders with modules that come before the project's own."""
        command = ["steps/train_qlora.py", "--run-id", data_run, "--profile", profile]
        command += ["--checkpoint-minutes", str(minutes), *options]
        command[0] = str(ROOT / command[0])
        (workplace / "progress").unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, *command],
            env=os.environ
            | {
                "ARGO_PROGRESS_FILE": "progress",
                "PYTHONPATH": os.pathsep.join(map(str, [*modules, ROOT])),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Until the training has done so many steps, or has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")
        file = Path("progress")
        done = file.read_text() if file.exists() else ""
        if done and int(done.partition("/")[0]) >= step:
            return
        time.sleep(0.01)


def weights(run_id: str) -> dict[str, Tensor]:
    with runs.adapter(mlflow.get_run(run_id)) as adapter:
        return load_file(adapter / contract.WEIGHTS)


def losses(run_id: str) -> list[tuple[str, int, float]]:
    client = mlflow.MlflowClient()
    keys = ("loss", "eval_loss", "learning_rate")
    return [(k, p.step, p.value) for k in keys for p in client.get_metric_history(run_id, k)]


def interrupt(start: Start, profile: str, with_signal: signal.Signals, times: int) -> str:
    """Stop a training at random steps again and again, then let it end; its run's ID."""
    rng = random.Random(7)
    done = 0
    for _ in range(times):
        # A checkpoint every now and then, so that a kill also loses some steps.
        process = start(profile, minutes=rng.choice([0, 0.01]))
        done = min(done + rng.randint(1, max(1, 2 * STEPS // times - 2)), STEPS - 4)
        wait_for_step(process, done)
        process.send_signal(with_signal)
        _, stderr = process.communicate(timeout=120)
        expected = 75 if with_signal == signal.SIGTERM else -with_signal
        assert process.returncode == expected, stderr
    process = start(profile)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return Path("outputs/run-id").read_text()


@pytest.mark.parametrize(
    ("with_signal", "times"),
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 10, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 10, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_ends_with_the_same_adapter(
    with_signal: signal.Signals, times: int, start: Start, train, data_run: str, quick
) -> None:
    settings = {"max_steps": None, "num_train_epochs": 2, "lora_dropout": 0.1}
    settings["neftune_noise_alpha"] = 5.0
    whole = train(data_run, quick("whole", **settings))
    run_id = interrupt(start, quick("broken", **settings), with_signal, times)
    assert_close(weights(run_id), weights(whole), rtol=0, atol=1e-6)
    for (key, step, value), (other_key, other_step, other) in zip(
        losses(run_id), losses(whole), strict=True
    ):
        assert (key, step) == (other_key, other_step)
        assert value == pytest.approx(other, abs=1e-6)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED" and tags.CHECKPOINT not in run.data.tags
    assert not mlflow.MlflowClient().list_artifacts(run_id, checkpoint.FOLDER)
    filters = f"tags.`{tags.PROFILE}` = 'broken'"
    assert len(mlflow.search_runs(filter_string=filters, search_all_experiments=True)) == 1


def test_a_changed_profile_is_not_resumed_and_the_change_is_named(
    start: Start, step, data_run: str, quick
) -> None:
    process = start(quick("one", max_steps=None, num_train_epochs=2))
    wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert "stopped by SIGTERM after step" in stderr and "start it again to go on" in stderr
    (broken,) = mlflow.search_runs(
        filter_string=f"tags.`{tags.CHECKPOINT}` != ''", output_format="list"
    )
    assert broken.info.status == "KILLED"
    kept = f"{checkpoint.FOLDER}/{broken.data.tags[tags.CHECKPOINT]}"
    files = mlflow.MlflowClient().list_artifacts(broken.info.run_id, kept)
    assert {Path(file.path).suffix for file in files} == {".json", ".safetensors"}

    quick("one", learning_rate=1e-3)
    run = broken.info.run_id
    named = step("train_qlora", "--run-id", data_run, "--profile", "one", "--resume", run)
    assert named.exit_code == 2
    assert f"--resume {run}: the profile changed since" in named.stderr
    anew = step("train_qlora", "--run-id", data_run, "--profile", "one")
    assert anew.exit_code == 0
    assert "is not resumed: the profile changed since" in anew.stderr
    assert Path("outputs/run-id").read_text() != run


def test_a_run_without_a_checkpoint_cannot_be_resumed(step, data_run: str, quick) -> None:
    arguments = ("train_qlora", "--run-id", data_run, "--profile", quick("one"), "--resume")
    result = step(*arguments, data_run)
    assert result.exit_code == 2
    assert f"--resume {data_run}: the run has no checkpoint (FINISHED)" in result.stderr
    result = step(*arguments, "0" * 32)
    assert result.exit_code == 2 and "is not a run of" in result.stderr


@pytest.mark.slow
def test_of_two_trainings_that_start_at_once_one_trains(start: Start, data_run: str, quick) -> None:
    """Before there is a checkpoint, and whichever of them is the first."""
    quick("one", max_steps=4)
    both = [start("one", "--out-dir", folder, minutes=60) for folder in ("a", "b")]
    ends = [(process.communicate(timeout=240)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 75], ends
    (winner,) = (process.pid for process, (_, code) in zip(both, ends, strict=True) if code == 0)
    (refused,) = (stderr for stderr, code in ends if code == 75)
    assert f"is being trained by process {winner}; wait for it" in refused
    (run,) = trainings_of("one")
    assert run.info.status == "FINISHED" and tags.LEASE in run.data.tags


def trainings_of(profile: str) -> list[mlflow.entities.Run]:
    filters = f"tags.`{tags.PROFILE}` = '{profile}' and tags.`{tags.STEP}` = 'train_qlora'"
    return mlflow.search_runs(filter_string=filters, output_format="list")


@pytest.mark.slow
def test_a_training_goes_on_though_its_checkpoint_is_damaged_and_sweeps_what_it_left(
    start: Start, step, data_run: str, quick
) -> None:
    process = start(quick("one", max_steps=12))
    wait_for_step(process, 3)
    process.kill()
    process.communicate(timeout=120)
    (broken,) = trainings_of("one")
    run_id = broken.info.run_id
    client = mlflow.MlflowClient()
    spent = json.loads(broken.data.tags.get(tags.SPENT, '{"seconds": 0}'))["seconds"]
    folder = Path(broken.info.artifact_uri.removeprefix("file://")) / checkpoint.FOLDER
    for file in folder.glob("*/optimizer.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    (folder / "step-1000").mkdir()
    left = mlflow.initialize_logged_model("adapter", source_run_id=run_id)

    again = step("train_qlora", "--run-id", data_run, "--profile", "one")
    assert again.exit_code == 0
    latest = broken.data.tags[tags.CHECKPOINT]
    aside = f"checkpoint {latest} of run {run_id} is put aside: optimizer.safetensors is not what"
    assert aside in again.stderr
    (run,) = trainings_of("one")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert [p.step for p in client.get_metric_history(run_id, "loss")] == list(range(1, 13))
    assert not client.list_artifacts(run_id, checkpoint.FOLDER)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert [model.model_id for model in models] == [run.data.tags[tags.MODEL_ID]] != [left.model_id]
    assert run.data.metrics["train_seconds"] > spent


@pytest.mark.slow
def test_force_begins_anew_and_sweeps_a_dead_training(
    start: Start, step, data_run: str, quick
) -> None:
    process = start(quick("one", max_steps=12))
    wait_for_step(process, 3)
    process.kill()
    process.communicate(timeout=120)
    (broken,) = trainings_of("one")
    assert broken.info.status == "RUNNING"
    anew = step("train_qlora", "--run-id", data_run, "--profile", "one", "--force")
    assert anew.exit_code == 0
    swept = mlflow.get_run(broken.info.run_id)
    assert swept.info.status == "KILLED" and tags.CHECKPOINT not in swept.data.tags
    assert not mlflow.MlflowClient().list_artifacts(broken.info.run_id, checkpoint.FOLDER)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(start: Start, train, data_run: str, quick) -> None:
    alone = train(data_run, quick("alone", max_steps=6, learning_rate=3e-4))
    process = start(quick("together", max_steps=6, learning_rate=3e-4), "--gpus", "2")
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    together = Path("outputs/run-id").read_text()
    assert_close(weights(together), weights(alone), rtol=0, atol=1e-5)
    for (_, step, value), (_, other_step, other) in zip(
        losses(together), losses(alone), strict=True
    ):
        assert step == other_step and value == pytest.approx(other, abs=1e-5)


def process_of(launcher: int, rank: int) -> int:
    """The process of a training that has this rank among those that a launcher started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"{launcher} has no child of rank {rank}")


HOLD = """
import time
from pathlib import Path
from loraline.training import checkpoint
on_step_end = checkpoint.KeepCheckpoints.on_step_end
def wait_at_the_fourth_step(keeper, args, state, control, **options):
    if state.global_step == 4 and args.process_index == 0:
        Path("held").touch()
        while not Path("go-on").exists():
            time.sleep(0.01)
    on_step_end(keeper, args, state, control, **options)
checkpoint.KeepCheckpoints.on_step_end = wait_at_the_fourth_step
"""
"""The training waits at the end of its fourth step, so that it is interrupted there on a fast
machine and on a slow one."""


def wait_until_held(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not Path("held").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, None], ids=["first", "second", "launcher"])
@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_several_processes_are_stopped_and_resumed_together(
    with_signal: signal.Signals,
    rank: int | None,
    start: Start,
    train,
    data_run: str,
    quick,
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLD)
    settings = {"max_steps": 8, "num_train_epochs": 1, "learning_rate": 3e-4}
    alone = train(data_run, quick("alone", **settings))
    process = start(quick("together", **settings), "--gpus", "2", modules=[tmp_path])
    wait_until_held(process)
    children = [process_of(process.pid, each) for each in (0, 1)]
    os.kill(process.pid if rank is None else children[rank], with_signal)
    Path("go-on").touch()
    stopped = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    if with_signal == signal.SIGTERM:
        assert process.returncode == 75, stderr
        assert "with a checkpoint; start it again to go on from there" in stderr
        assert stderr.count("with a checkpoint") == 1, "the first process speaks for all"
    elif rank is not None:
        assert process.returncode == 137, stderr
        assert f"process {rank} of the training was killed by SIGKILL" in stderr
        assert time.monotonic() - stopped < 60
    while any(map(lease.start_ticks, children)):
        assert time.monotonic() - stopped < 180, "a process of the training is left"
        time.sleep(0.1)
    process = start("together", "--gpus", "2")
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    together = Path("outputs/run-id").read_text()
    assert_close(weights(together), weights(alone), rtol=0, atol=1e-5)


SLOW_UPLOAD = """
import time
from loraline.training import checkpoint
upload = checkpoint.upload
def slowly(*arguments):
    time.sleep(33)
    upload(*arguments)
checkpoint.upload = slowly
"""


@pytest.mark.slow
def test_a_slow_upload_of_a_checkpoint_is_waited_for(
    start: Start, data_run: str, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the 30 seconds that torch's launcher gives the processes by itself."""
    (tmp_path / "sitecustomize.py").write_text(HOLD + SLOW_UPLOAD)
    settings = {"max_steps": None, "num_train_epochs": 1}
    process = start(quick("together", **settings), "--gpus", "2", minutes=60, modules=[tmp_path])
    wait_until_held(process)
    process.send_signal(signal.SIGTERM)
    Path("go-on").touch()
    _, stderr = process.communicate(timeout=170)
    assert process.returncode == 75 and "with a checkpoint" in stderr, stderr
    (stopped,) = mlflow.search_runs(
        filter_string=f"tags.`{tags.CHECKPOINT}` != ''", output_format="list"
    )
    assert stopped.info.status == "KILLED"


def test_states_are_read_as_they_were_written(tmp_path: Path) -> None:
    import torch

    state = {
        "state": {0: {"step": torch.tensor(3.0), "moments": torch.randn(2, 3).T}, 7: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 7], "fused": None}],
    }
    checkpoint.write_state(state, tmp_path / "optimizer")
    assert sorted(f.suffix for f in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert json.loads((tmp_path / "optimizer.json").read_text())
    result = checkpoint.read_state(tmp_path / "optimizer")
    assert_close(result["state"][0], state["state"][0])
    assert result["param_groups"] == state["param_groups"]
