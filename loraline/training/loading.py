"""Batches on their way to the model: made in worker processes, and copied while the GPU works."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from loraline.process import share
from loraline.training import launch
from loraline.training.packing import MicroBatch


def loader(
    indices: Sequence[int], batches: Iterable[list[int]], collate: Callable[..., Any], args: Any
) -> DataLoader[Any]:
    """What `collate` makes of each batch of indices; `args` are the trainer's."""
    return DataLoader(
        indices,
        batch_sampler=batches,
        collate_fn=collate,
        # Images are decoded while the GPU works; without one there is no core to spare.
        num_workers=workers() if args.device.type == "cuda" else 0,
        worker_init_fn=leave_process_group,
        # Of its own, so that loading does not move the state that dropout draws from.
        generator=torch.Generator().manual_seed(args.seed),
    )


def on_device(pack: MicroBatch, device: torch.device) -> MicroBatch:
    """A pass's input on the model's device, copied while the GPU computes the pass before."""
    if device.type != "cuda":
        return pack
    return {
        name: value.pin_memory().to(device, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in pack.items()
    }


def workers() -> int:
    """Processes that decode images for this one: its share of the machine's cores, but for one."""
    return max(1, min(8, share.cpus() // launch.local_world() - 1))


def leave_process_group(worker: int) -> None:
    """Take a loader's process out of the process group that signals are sent to.

    The training stops after the current step; a loader that ended earlier would end the training
    with an error instead of a checkpoint. When the training has ended, its loaders end by
    themselves.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
