"""One training on several GPUs of a host: a process each, started by torch's elastic launcher.

The first process talks to MLflow and fetches what all need into a shared folder; the others wait
for it there and take part in the training alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraline.errors import TryAgain, UserError

SHARED = "LORALINE_SHARED_FOLDER"
"""Environment variable with the folder that the processes of a training share."""

READY = "ready"
"""File in the shared folder that says that all else in it is complete."""


def rank() -> int:
    """Number of this process among those of its training; 0 alone and for the first."""
    return int(os.environ.get("RANK", "0"))


def take_gpu() -> None:
    """Work on the GPU that is this process' own, from before the first allocation."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def leave() -> None:
    """End the exchange between the processes of a training; what follows is the first one's."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launched() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ


def on_gpus(count: int) -> None:
    """Run this very command once more, in one process for each GPU, and take over its end."""
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    found = torch.cuda.device_count()
    if torch.cuda.is_available() and count > found:
        raise UserError(f"--gpus {count}: this machine has {found}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SHARED] = folder
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            # The process has said why; its exit code is this one's.
            sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
        except SignalException as error:
            raise TryAgain(f"stopped by {error.sigval.name}; start it again") from error


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for the inputs of a training, gone after use."""
    if launched():
        yield Path(os.environ[SHARED])
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def let_follow(folder: Path) -> None:
    """Tell the other processes that the shared folder is complete."""
    (folder / READY).touch()


def follow() -> Path:
    """Wait for the first process to complete the shared folder."""
    folder = Path(os.environ[SHARED])
    while not (folder / READY).exists():
        time.sleep(0.2)
    return folder
