"""How several processes are started, wait for each other, and end as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from ports import free_port

from loraline.errors import Stopped, TryAgain, UserError
from loraline.training import launch, loading, other_nodes
from loraline.training.group import Group

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
    launch.run(Group(2), "script.py")
    assert configs[0].shutdown_timeout >= 24 * 3600


def test_nobody_waits_for_a_first_process_that_found_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.SHARED, str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    ended = "from loraline.training import launch; launch.announce_exit()"
    subprocess.run(
        [sys.executable, "-c", ended], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert launch.wait_for_shared_folder() is None
    launch.announce_ready(tmp_path)
    assert launch.wait_for_shared_folder() == tmp_path


def test_what_stops_a_training_does_not_reach_its_loaders() -> None:
    """A launcher and a terminal signal a process and all that belongs to its group."""

    def work() -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        loading.leave_process_group(0)
        time.sleep(0.5)
        return 0

    def train() -> int:
        os.setpgid(0, 0)  # The training's group.
        worker = forked(work)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + 10
        while os.getpgid(worker) == os.getpgid(0):
            if time.monotonic() > until:
                return 3
            time.sleep(0.01)
        os.killpg(0, signal.SIGTERM)
        _, status = os.waitpid(worker, 0)
        return os.waitstatus_to_exitcode(status)

    _, status = os.waitpid(forked(train), 0)
    assert os.waitstatus_to_exitcode(status) == 0


def forked(work: Callable[[], int]) -> int:
    """The ID of a process that ends with the exit code of some work, or with 70 where it fails."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return pid


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (Group(nodes=2, node=2, first_node="a:29500"), "--node 2: --nodes 2 are numbered from 0"),
        (Group(node=1), "--node 1: --nodes 1 are numbered from 0 to 0"),
        (Group(nodes=2), "--first-node '': --nodes 2 meet at HOST:PORT"),
        (Group(nodes=2, first_node="a"), "--first-node 'a'"),
        (Group(nodes=2, first_node="a:port"), "--first-node 'a:port'"),
        (Group(nodes=2, first_node="a:70000"), "--first-node 'a:70000'"),
    ],
)
def test_machines_that_could_not_meet_are_refused(given: Group, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        given.check("lora")
    assert complaint in str(refused.value)


def test_a_whole_model_is_trained_on_one_machine() -> None:
    Group(gpus=8).check("full")
    several = Group(nodes=2, first_node="a:29500")
    several.check("lora")
    with pytest.raises(UserError, match="with train: full the weights are shared out"):
        several.check("full")


def test_machines_meet_at_the_first_under_the_numbers_that_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed.launcher import api

    configs = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, _: lambda *_: configs.append(config))
    monkeypatch.setattr(launch, "meet", lambda group: None)
    launch.run(Group(4, nodes=2, node=1, first_node="train-0.train:29500"), "script.py")
    (config,) = configs
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 4)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("static", "train-0.train:29500")
    assert config.rdzv_configs["rank"] == 1


def test_machines_that_did_not_meet_are_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed import DistNetworkError
    from torch.distributed.launcher import api

    def unreachable(*_: object) -> None:
        raise DistNetworkError("The client socket has timed out")

    monkeypatch.setattr(launch, "meet", lambda group: None)
    monkeypatch.setattr(api, "elastic_launch", lambda *_: unreachable)
    with pytest.raises(TryAgain, match="2 machines of this training did not meet at first:29500"):
        launch.run(Group(1, nodes=2, node=0, first_node="first:29500"), "script.py")


def test_a_first_machine_that_never_comes_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "MEETING", 0)
    monkeypatch.setattr(launch, "ONE_TRY", timedelta(seconds=0.1))
    with pytest.raises(
        TryAgain, match=r"2 machines of this training did not meet at 127\.0\.0\.1:9"
    ):
        launch.run(Group(1, nodes=2, node=1, first_node="127.0.0.1:9"), "script.py")


def test_a_first_machine_that_waits_for_the_others_can_be_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(seconds: float) -> None:
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(launch.time, "sleep", stopped)
    with pytest.raises(Stopped):
        launch.run(Group(1, nodes=2, node=0, first_node=f"127.0.0.1:{free_port()}"), "script.py")


def test_a_machine_that_was_lost_does_not_join_the_others_before_they_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed import TCPStore
    from torch.distributed.launcher import api

    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(api, "elastic_launch", lambda *_: lambda *words: started.append(words))
    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first.set("here/0", "1")
    second = Group(1, nodes=2, node=1, first_node=f"127.0.0.1:{first.port}")
    launch.run(second, "script.py")
    assert len(started) == 1

    first.set(launch.START, "null")
    with pytest.raises(TryAgain, match="has begun without this machine"):
        launch.run(second, "script.py")
    assert len(started) == 1


def test_another_machine_ends_with_a_first_process_that_found_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import HashStore

    place = HashStore()
    place.set(launch.LEFT, "1")
    monkeypatch.setenv(launch.SHARED, str(tmp_path))
    monkeypatch.setattr(launch, "meeting_place", lambda: place)
    # What a process of a training leaves for its end is not for the end of the tests.
    monkeypatch.setattr(launch.atexit, "register", lambda callback: callback)
    other_nodes.fill("a run")
    assert launch.wait_for_shared_folder() is None
