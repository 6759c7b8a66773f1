"""One training on several GPUs of a machine or of several: a process each, started by torch's
elastic launcher on every machine.

The first process talks to MLflow and fetches what all need into a shared folder; the others of its
machine wait for it there and take part in the training alone. The step ends with the exit code of
the first process; another one that ends for the same reason ends with 0. On the other machines
`other_nodes` fills the folder, and a process there that has to be started again ends with 75.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraline.errors import TryAgain, UserError
from loraline.training.group import MEETING, Group

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SHARED = "LORALINE_SHARED_FOLDER"
"""Environment variable with the folder that the processes of a training share."""

READY = "ready"
"""File in the shared folder that marks its other files as complete."""

LEFT = "left"
"""File in the shared folder that marks the end of the first process without a training."""

START = "start"
"""Key of the launcher's store with the checkpoint that all machines go on from."""

ONE_TRY = timedelta(seconds=20)
"""How long a machine that does not answer is waited for before its name is looked up again."""

PEER_TIMEOUT = timedelta(days=7)
"""How long processes wait for each other and the launcher for them. Whoever stops the training has
a deadline of its own, a pod its grace period; the launcher's 30 seconds would cut an upload short,
and the exchange's ten minutes would end a training whose first process is still uploading."""


def rank() -> int:
    """Number of this process among those of its training; 0 alone and for the first."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> int:
    """Number of processes that were started together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def nodes() -> int:
    """Number of machines that train together."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def leads_node() -> bool:
    """Whether this process is the first of its machine, and the machine is not the first."""
    return rank() > 0 and os.environ.get("LOCAL_RANK") == "0"


def on_first_node() -> bool:
    """Whether this process is on the first machine of its training."""
    return os.environ.get("GROUP_RANK", "0") == "0"


def launched() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ


def join() -> None:
    """Work on the GPU that is this process' own, together with the other processes, if any."""
    import torch
    from torch import distributed

    from loraline.training import exchange

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if launched():
        distributed.init_process_group(exchange.backend(), timeout=PEER_TIMEOUT)


def leave() -> None:
    """End the exchange between the processes of a training; what follows is the first one's."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_gpus(group: Group) -> None:
    """Run this command again in one process for each GPU, and exit as those processes do."""
    import torch

    available = torch.cuda.device_count()
    if torch.cuda.is_available() and group.gpus > available:
        raise UserError(f"--gpus {group.gpus}: this machine has {available}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SHARED] = folder
        run(group, *sys.argv)


def run(group: Group, *command: str) -> None:
    """Run a Python script in a group's processes of this machine; exits with their code if it is
    not 0."""
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=group.nodes,
        max_nodes=group.nodes,
        nproc_per_node=group.gpus,
        run_id="loraline",
        # Several machines are numbered by whoever starts them; one finds a port by itself.
        rdzv_backend="static" if group.nodes > 1 else "c10d",
        rdzv_endpoint=group.first_node if group.nodes > 1 else "127.0.0.1:0",
        rdzv_configs={"rank": group.node, "timeout": MEETING} if group.nodes > 1 else {},
        max_restarts=0,
        shutdown_timeout=int(PEER_TIMEOUT.total_seconds()),
    )
    try:
        # Kept, since the machines' store would end with it.
        _place = meet(group) if group.nodes > 1 else None
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        sys.exit(exit_code(error.failures))
    except SignalException as error:
        raise TryAgain(f"stopped by {error.sigval.name}; start it again") from error
    except (DistNetworkError, DistStoreError) as error:
        raise TryAgain(
            f"the {group.nodes} machines of this training did not meet at {group.first_node}; "
            "start all of them again"
        ) from error


def meet(group: Group) -> Any:
    """Wait until all machines of a group are there; the launcher's store, served by the first.

    Torch's launcher would wait for them where no signal reaches it. Raises DistNetworkError or
    DistStoreError where one does not come.
    """
    from torch.distributed import DistStoreError, TCPStore

    host, _, port = group.first_node.rpartition(":")
    deadline = time.monotonic() + MEETING
    if group.node:
        store = find_first_node(host, int(port), deadline)
    else:
        # The launcher of the same process, and it alone, can take it over.
        shared = {"wait_for_workers": False, "multi_tenant": True}
        wait = timedelta(seconds=MEETING)
        store = TCPStore(host, int(port), group.nodes, True, wait, **shared)
    store.set(f"here/{group.node}", "1")
    while not store.check([f"here/{node}" for node in range(group.nodes)]):
        if time.monotonic() > deadline:
            raise DistStoreError("not all machines came")
        time.sleep(0.2)
    return store


def find_first_node(host: str, port: int, deadline: float) -> Any:
    """The store of the first machine of a group, once it can be reached.

    A name in the DNS may lead to a machine that is gone, so it is looked up again and again, until
    the time `deadline`. Raises TryAgain where the first machine is at work in a training that this
    machine is not part of: it was, and was lost, and the others have not ended yet.
    """
    from torch.distributed import DistNetworkError, DistStoreError, TCPStore

    while True:
        try:
            store = TCPStore(host, port, is_master=False, timeout=ONE_TRY)
            break
        except (DistNetworkError, DistStoreError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    if store.check([START]):
        raise TryAgain(
            f"the training at {host}:{port} has begun without this machine; start it again when "
            "the others have ended"
        )
    return store


def exit_code(failures: Mapping[int, ProcessFailure]) -> int:
    """What the training ends with, by the exit codes of the processes that failed first.

    One that ended because another had left knows only that, and one that the launcher stopped
    for it not even that; the other one knows why. A process has said itself why it ended, but for
    one that a signal killed.
    """
    consequences = {TryAgain.exit_code: 1, -signal.SIGTERM: 2}
    first = min(failures, key=lambda rank: (consequences.get(failures[rank].exitcode, 0), rank))
    code = failures[first].exitcode
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    click.echo(
        f"process {first} of the training was killed by {name}; start it again to go on from its "
        "last checkpoint",
        err=True,
    )
    return TryAgain.exit_code if -code == signal.SIGTERM else 128 - code


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for the inputs of a training, gone after use."""
    if launched():
        yield Path(os.environ[SHARED])
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def announce_exit() -> None:
    """Tell the other processes when this one, the first, exits, so that they stop waiting for it.

    It exits without training where a finished run of the same inputs exists.
    """
    if launched():
        atexit.register(Path(os.environ[SHARED], LEFT).touch)
    if nodes() > 1:
        store = meeting_place()

        def announce() -> None:
            # Where the store has gone, so has whoever would ask it.
            with suppress(RuntimeError):
                store.set(LEFT, "1")

        atexit.register(announce)


def meeting_place() -> Any:
    """The store that the launcher of the first machine holds for all processes."""
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False)


def announce_ready(folder: Path) -> None:
    """Tell the other processes that the shared folder is complete."""
    (folder / READY).touch()


def wait_for_shared_folder() -> Path | None:
    """Wait for the first process to complete the shared folder; None if it left before."""
    folder = Path(os.environ[SHARED])
    while not (folder / READY).exists():
        if (folder / LEFT).exists():
            return None
        time.sleep(0.2)
    return folder
