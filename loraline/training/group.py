"""The machines and GPUs of a training, and the flags that set them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from loraline.errors import UserError

MEETING = 600
"""Seconds that machines wait for each other at the start."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Group:
    """The machines of a training, and this one among them."""

    gpus: int = 1
    """Processes on each machine."""

    nodes: int = 1
    node: int = 0
    """Number of this machine; the first is 0."""

    first_node: str = ""
    """Host and port of the first machine, where all of them meet; empty for one machine."""

    @property
    def size(self) -> int:
        """Processes on all machines together."""
        return self.gpus * self.nodes

    def check(self, train: str) -> None:
        """Raise UserError where the machines could not find each other, or not train so."""
        if self.node >= self.nodes:
            raise UserError(
                f"--node {self.node}: --nodes {self.nodes} are numbered from 0 to {self.nodes - 1}"
            )
        host, _, port = self.first_node.rpartition(":")
        if self.nodes > 1 and not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(
                f"--first-node {self.first_node!r}: --nodes {self.nodes} meet at HOST:PORT of the "
                "first of them"
            )
        if self.nodes > 1 and train == "full":
            raise UserError(
                f"--nodes {self.nodes}: with train: full the weights are shared out, over the "
                "GPUs of one machine and no further; take one machine, or train: lora"
            )


SUCCESSES = ("Complete", "SUCCEEDED")
"""First words of the status of a group of machines that trained to the end."""


def leave_as_ended(how: str) -> None:
    """Exit with the code that ended a group of machines; return where the group ended well.

    `how` is what its Job says: `Complete: …`, or `Failed: Container main for pod … failed with exit
    code 2 …` (the message of Kubernetes' podFailurePolicy). Where it names no code, it is 1.
    """
    if how.partition(":")[0] in SUCCESSES:
        return
    code = re.search(r"exit code (\d+)", how)
    click.echo(
        "train_qlora: the machines that trained together have ended: "
        f"{how or 'for an unknown reason'}; their logs say why",
        err=True,
    )
    sys.exit(int(code[1]) if code else 1)


FLAGS = (
    click.option(
        "--gpus",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        envvar="LORALINE_GPUS",
        help="GPUs of this machine to train on; of each, if there are several.",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        envvar="LORALINE_NODES",
        help="Machines that train together; the same command is started on each.",
    ),
    click.option(
        "--node",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        envvar="LORALINE_NODE",
        help="Number of this machine; 0 is the first and hands over the run ID.",
    ),
    click.option(
        "--first-node",
        default="",
        metavar="HOST:PORT",
        envvar="LORALINE_FIRST_NODE",
        help="The first machine, and a free port of it where all meet.",
    ),
)


def group_options(command: Command) -> Command:
    """Give a command the flags of a group."""
    for flag in reversed(FLAGS):
        command = flag(command)
    return command
