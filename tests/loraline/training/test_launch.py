"""How several processes are started, wait for each other, and end as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraline.training import launch, trainer

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ({0: 2}, 2, ""),
        ({0: 75, 1: 1}, 1, ""),
        ({0: 75, 1: -9}, 137, "process 1 of the training was killed by SIGKILL; start it again"),
        ({0: -15, 1: 2}, 2, ""),
        ({0: 75, 1: -15}, 75, ""),
        ({1: -15}, 75, "process 1 of the training was killed by SIGTERM"),
    ],
)
def test_the_training_ends_with_what_the_first_cause_ends_with(
    ends: dict[int, int], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {rank: SimpleNamespace(exitcode=end) for rank, end in ends.items()}
    assert launch.exit_code(failures) == code  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith(said)


def test_the_launcher_gives_a_checkpoint_as_long_as_the_pod_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed.launcher import api

    configs = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, _: lambda *_: configs.append(config))
    launch.run(2, "script.py")
    assert configs[0].shutdown_timeout >= 24 * 3600


def test_nobody_waits_for_a_first_process_that_found_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.SHARED, str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    ended = "from loraline.training import launch; launch.lead()"
    subprocess.run(
        [sys.executable, "-c", ended], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert launch.follow() is None
    launch.let_follow(tmp_path)
    assert launch.follow() == tmp_path


def test_what_stops_a_training_does_not_reach_its_loaders() -> None:
    """A launcher and a terminal signal a process and all that belongs to its group."""
    loader = os.fork()
    if loader == 0:
        os.setpgid(0, 0)  # The training's group.
        worker = os.fork()
        if worker == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
            trainer.out_of_reach(0)
            time.sleep(0.5)
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while os.getpgid(worker) == os.getpgid(0):
            time.sleep(0.01)
        os.killpg(0, signal.SIGTERM)
        _, status = os.waitpid(worker, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    _, status = os.waitpid(loader, 0)
    assert os.waitstatus_to_exitcode(status) == 0
