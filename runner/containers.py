"""One attempt of a container, here: a process group with a folder in the place of /tmp/outputs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.reader import OUT_DIR, Container, Output, Values, listed
from runner.references import substitute

GRACE = 30
"""Seconds between SIGTERM and SIGKILL, as in Kubernetes."""

PROGRESS = ".progress"
"""File in the node's folder in which a step may write `done/total`, as Argo reads it."""


LATE = "ran longer than "


@dataclass
class Stop:
    """Tells running containers to end: why, and whether there is no more patience."""

    event: asyncio.Event
    why: str = ""
    at_once: bool = False

    def ask(self, why: str) -> None:
        self.at_once = self.event.is_set()
        self.why = self.why or why
        self.event.set()


@dataclass
class Attempt:
    """How a container ended: a phase with its message, the exit code, and the outputs."""

    phase: str
    message: str
    exit_code: int
    outputs: Values


def command_line(container: Container, folder: str, values: Values) -> tuple[list[str], Values]:
    """A container's command and its own variables, as they are on this machine."""

    def here(word: str) -> str:
        return substitute(re.sub(rf"{OUT_DIR}(?![\w.-])", folder, word), values)

    command = [here(word) for word in container.command]
    if command[0] == "python":
        command[0] = sys.executable
    return command, {name: here(value) for name, value in container.environment.items()}


async def attempt(
    root: Path,
    container: Container,
    outputs: dict[str, Output],
    folder: Path,
    values: Values,
    until: float,
    stop: Stop,
    lock: int,
) -> Attempt:
    """Run a container's process in the root; `folder` is relative to it.

    The process inherits the file descriptor `lock`, so that a run is held as long as one lives.
    """
    # A file that an earlier attempt left must not pass for a result of this one.
    shutil.rmtree(root / folder, ignore_errors=True)
    (root / folder).mkdir(parents=True)
    command, environment = command_line(container, str(folder), values)
    environment |= {"ARGO_PROGRESS_FILE": str(root / folder / PROGRESS)}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=root,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock],
        )
    except (OSError, ValueError) as error:
        told = f"cannot start {command[0]}: {getattr(error, 'strerror', None) or error}"
        return Attempt("Error", told, 127, {})
    deadline = time.monotonic() + container.seconds
    stopped = await ended(process, min(until, deadline), stop)
    if stopped == LATE:
        stopped += "activeDeadlineSeconds" if deadline < until else "timeout"
    # Death by a signal is reported as a shell and Kubernetes do it: 128 and the signal.
    code = process.returncode or 0
    code = 128 - code if code < 0 else code
    if stopped:
        return Attempt("Failed", stopped, code, {})
    found, missing = read_outputs(root / folder, outputs)
    if code:
        return Attempt("Failed", f"exit code {code}", code, found)
    if missing:
        told = f"output {listed(missing)} has no default and was not written"
        return Attempt("Error", told, code, found)
    return Attempt("Succeeded", "", code, found)


async def ended(process: asyncio.subprocess.Process, until: float, stop: Stop) -> str:
    """Wait for a process and end what it leaves behind; why it was stopped, if it was."""
    gone = asyncio.ensure_future(process.wait())
    told = asyncio.ensure_future(stop.event.wait())
    left = None if until == float("inf") else max(0.0, until - time.monotonic())
    why = ""
    try:
        await asyncio.wait({gone, told}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            why = stop.why or LATE
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            killed_at = time.monotonic() + GRACE
            while not gone.done() and time.monotonic() < killed_at and not stop.at_once:
                await asyncio.wait({gone}, timeout=0.05)
    finally:
        # Also where this runner itself comes to grief: no container outlives it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        told.cancel()
    await gone
    return why


def read_outputs(folder: Path, outputs: dict[str, Output]) -> tuple[Values, list[str]]:
    """The values that files or defaults give, and the names of those that have neither."""
    found, missing = {}, []
    for name, output in outputs.items():
        file = folder / output.path
        if file.is_file():
            found[name] = file.read_text("utf-8", "replace").removesuffix("\n")
        elif output.default is not None:
            found[name] = output.default
        else:
            missing.append(name)
    return found, missing
