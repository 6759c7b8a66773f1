"""A training on two machines, here two launchers on one, learns what one process learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from ports import free_port
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from loraline import contract
from loraline.tracking import runs

ROOT = Path(__file__).parents[2]
Machines = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def machines(workplace: Path, data_run: str) -> Machines:
    """Start a training of a profile on two machines, each with a folder for its outputs."""

    def begin(profile: str, *options: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        command = [sys.executable, str(ROOT / "steps/train_qlora.py"), "--run-id", data_run]
        command += ["--profile", profile, "--nodes", "2", "--first-node", f"127.0.0.1:{port}"]
        return [
            subprocess.Popen(
                [*command, *options, "--node", str(node), "--out-dir", f"outputs-{node}"],
                env=os.environ
                | {"PYTHONPATH": str(ROOT), "ARGO_PROGRESS_FILE": f"progress-{node}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node in range(2)
        ]

    return begin


def ends(group: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    said = [process.communicate(timeout=170)[1] for process in group]
    return [(process.returncode, text) for process, text in zip(group, said, strict=True)]


def weights(run_id: str) -> dict[str, Tensor]:
    with runs.adapter(mlflow.get_run(run_id)) as adapter:
        return load_file(adapter / contract.WEIGHTS)


@pytest.mark.slow
def test_two_machines_learn_what_one_process_learns_though_one_of_them_is_lost(
    machines: Machines, train, data_run: str, quick
) -> None:
    settings = {"max_steps": 8, "num_train_epochs": 1, "learning_rate": 3e-4, "lora_dropout": 0.0}
    alone = train(data_run, quick("alone", **settings))
    first, second = machines(quick("together", **settings), "--checkpoint-minutes", "0")
    wait_for_step(first, 3)
    os.kill(second.pid, signal.SIGTERM)
    (code, said), (other, other_said) = ends([first, second])
    assert code == 75 and "with a checkpoint; start it again" in said, said
    assert other in (0, 75), other_said

    resumed = ends(machines("together"))
    assert [code for code, _ in resumed] == [0, 0], resumed
    run_id = Path("outputs-0/run-id").read_text()
    assert not Path("outputs-1").exists()
    assert_close(weights(run_id), weights(alone), rtol=0, atol=1e-5)
    steps = [p.step for p in mlflow.MlflowClient().get_metric_history(run_id, "loss")]
    assert steps == list(range(1, 9))


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Until the training has done so many steps, or has ended."""
    file = Path("progress-0")
    deadline = time.monotonic() + 170
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")
        if file.exists() and int(file.read_text().partition("/")[0] or 0) >= step:
            return
        time.sleep(0.01)
