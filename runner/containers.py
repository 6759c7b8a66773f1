"""One attempt of a container as a local process group; a folder replaces /tmp/outputs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.language import OUT_DIR, Container, Output, Values
from runner.logs import logged
from runner.programs import Program, Programs
from runner.references import NodeError, substitute
from runner.values import decoded

GRACE = 30
"""Seconds between SIGTERM and SIGKILL, as in Kubernetes."""

PROGRESS = ".progress"
"""File in the node's folder to which a step may write `done/total`, the format that Argo reads."""

LATE = "Pod was active on the node longer than the specified deadline"
NOT_STARTED = 64
"""Exit code of Argo's executor if it cannot start the program or read an output."""

LONGEST_ARGUMENT = 131_071
"""Bytes. On Argo a longer argument reaches the program as the name of a file."""

LARGEST_OUTPUTS = 2_097_152 - 1024
"""Bytes of a pod's outputs that fit into Argo's message beside the rest of it."""


class Stop:
    """A request to stop, for all that runs or waits: its reason, and whether to kill at once."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.why = ""
        self.at_once = False

    def ask(self, why: str, *, at_once: bool = False) -> None:
        """Ask to stop. What stops already keeps its time for it, unless it is `at_once`."""
        self.at_once |= at_once
        self.why = self.why or why
        self.event.set()

    def clear(self) -> None:
        self.event.clear()
        self.why, self.at_once = "", False

    @property
    def requested(self) -> bool:
        return self.event.is_set()

    async def unless_requested(
        self, waiting: Coroutine[Any, Any, Any], seconds: float | None = None
    ) -> bool:
        """Whether a wait finished before the stop and before its time limit."""
        wait = asyncio.ensure_future(waiting)
        stop = asyncio.ensure_future(self.event.wait())
        try:
            await asyncio.wait({wait, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return wait.done()
        finally:
            stop.cancel()
            if not wait.done():
                wait.cancel()


@dataclass
class Attempt:
    """How a container ended: a phase with its message, the exit code, and the outputs."""

    phase: str
    message: str
    exit_code: int
    outputs: Values
    hint: str = ""


def command_line(
    container: Container, folder: str, fill: Callable[[str], str]
) -> tuple[list[str], Values]:
    """A container's command and variables, as they are on this machine.

    References are Argo's to `fill` in, `$(VARIABLE)` is Kubernetes'.
    """

    def translated(word: str) -> str:
        return fill(re.sub(rf"{OUT_DIR}(?![\w.-])", folder, word))

    variables = {name: os.environ[name] for name in container.inherited if name in os.environ}
    environment: Values = {}
    for name, value in container.environment.items():
        environment[name] = variables[name] = expanded(translated(value), variables)
    command = [expanded(translated(word), variables) for word in container.command]
    if command[0] == "python":
        command[0] = sys.executable
    return command, environment


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A text with `$(NAME)` expanded as Kubernetes does; `$$` is a dollar."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value_of, text)


def check_sizes(command: list[str], environment: Values) -> None:
    """Raise a NodeError for an argument or a variable that Argo's pods cannot hand on."""
    for number, word in enumerate(command):
        if (size := len(os.fsencode(word))) > LONGEST_ARGUMENT:
            raise NodeError(
                f"argument {number} has {size} bytes; on Argo the program would see the name of a "
                f"file in the place of one that has more than {LONGEST_ARGUMENT}"
            )
    for name, value in environment.items():
        if (size := len(os.fsencode(f"{name}={value}"))) > LONGEST_ARGUMENT:
            raise NodeError(
                f"variable {name} has {size} bytes with its name; on Argo the container would not "
                f"start with more than {LONGEST_ARGUMENT}"
            )


async def attempt(
    root: Path,
    container: Container,
    outputs: dict[str, Output],
    folder: Path,
    values: Mapping[str, str],
    timeout: float,
    stop: Stop,
    programs: Programs,
) -> Attempt:
    """Run a container's process in the root; `folder` is relative to it, its log is beside it."""
    # A file of an earlier attempt must not pass for a result of this attempt.
    shutil.rmtree(root / folder, ignore_errors=True)
    (root / folder).mkdir(parents=True)
    command, environment = command_line(
        container, str(folder), lambda text: substitute(text, values)
    )
    check_sizes(command, environment)
    files = {name: with_values(output, values) for name, output in outputs.items()}
    environment |= {"ARGO_PROGRESS_FILE": str(root / folder / PROGRESS)}
    place = root / folder
    with logged(place.with_name(f"{place.name}.log")) as writers:
        try:
            process = await programs.start(command, root, environment, writers)
        except (OSError, ValueError) as error:
            message = f"main: Error (exit code {NOT_STARTED}): {not_started(command[0], error)}"
            return Attempt("Failed", message, NOT_STARTED, read_outputs(place, files)[0])
        deadline = time.monotonic() + min(container.seconds, timeout)
        stopped = await wait_for_end(process, deadline, stop)
    # A death by a signal is reported as shells and Kubernetes do: 128 plus the signal.
    code = process.returncode or 0
    code = 128 - code if code < 0 else code
    if stopped:
        return Attempt("Failed", stopped, code, {}, limit_of(container, timeout, stopped))
    return result_of(place, files, code)


def not_started(program: str, error: OSError | ValueError) -> str:
    """Why a program did not start, as Go's `exec.LookPath` says it where that is the reason."""
    if "/" in program and Path(program).is_dir():
        why = "is a directory"
    elif isinstance(error, FileNotFoundError):
        missing = f"stat {program}: no such file or directory"
        why = missing if "/" in program else "executable file not found in $PATH"
    elif isinstance(error, PermissionError):
        why = "permission denied"
    else:
        return f"failed to start {program}: {getattr(error, 'strerror', None) or error}"
    return f'failed to find name in PATH: exec: "{program}": {why}'


def limit_of(container: Container, timeout: float, stopped: str) -> str:
    """The limit that stopped a container."""
    if stopped != LATE:
        return ""
    field = "activeDeadlineSeconds" if container.seconds <= timeout else "timeout"
    return f"{field} is {min(container.seconds, timeout):g} s"


def with_values(output: Output, values: Mapping[str, str]) -> Output:
    """An output whose path and default have their references filled in."""
    path = substitute(output.path, values)
    if ".." in Path(path).parts or path.startswith("/"):
        raise NodeError(f"the output's path {path!r} is not in {OUT_DIR}")
    default = None if output.default is None else substitute(output.default, values)
    return output._replace(path=path, default=default)


def result_of(folder: Path, outputs: dict[str, Output], code: int) -> Attempt:
    """The result of a process that ended by itself."""
    values, missing = read_outputs(folder, outputs)
    if why := unreadable(folder, outputs):
        message = f"main: Error (exit code {NOT_STARTED}): {why}"
        return Attempt("Failed", message, NOT_STARTED, values)
    if code:
        return Attempt("Failed", f"main: Error (exit code {code})", code, values)
    if missing:
        file = f"/var/run/argo/outputs/parameters{OUT_DIR}/{outputs[missing[0]].path}"
        message = f"wait: Error (exit code {NOT_STARTED}): open {file}: no such file or directory"
        hint = f"output {', '.join(missing)} was not written and has no default"
        return Attempt("Error", message, code, values, hint)
    size = sum(len(os.fsencode(value)) for value in values.values())
    if size > LARGEST_OUTPUTS:
        message = (
            f"wait: Error (exit code {NOT_STARTED}): rpc error: code = ResourceExhausted desc = "
            f"trying to send message larger than max ({size} vs. 2097152)"
        )
        hint = "outputs are for names and numbers, not for data"
        return Attempt("Error", message, code, {}, hint)
    return Attempt("Succeeded", "", code, values)


def unreadable(folder: Path, outputs: dict[str, Output]) -> str:
    """What Argo says of the first output that is a folder, or whose path leads through a file."""
    for output in outputs.values():
        path = f"{OUT_DIR}/{output.path}"
        if (folder / output.path).is_dir():
            return f"failed to copy {path}: it is a directory"
        if any((folder / parent).is_file() for parent in Path(output.path).parents):
            return f"failed to open {path}: open {path}: not a directory"
    return ""


async def wait_for_end(process: Program, until: float, stop: Stop) -> str:
    """Wait for a process and end the processes it leaves; returns why it was stopped, if it was."""
    exited = asyncio.ensure_future(process.wait())
    stop_asked = asyncio.ensure_future(stop.event.wait())
    seconds_left = None if until == float("inf") else max(0.0, until - time.monotonic())
    why = ""
    try:
        await asyncio.wait(
            {exited, stop_asked}, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED
        )
        if not exited.done():
            why = stop.why or LATE
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            killed_at = time.monotonic() + GRACE
            while not exited.done() and time.monotonic() < killed_at and not stop.at_once:
                await asyncio.wait({exited}, timeout=0.05)
    finally:
        # This also runs if the runner itself fails: no container outlives it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stop_asked.cancel()
    await exited
    return why


def read_outputs(folder: Path, outputs: dict[str, Output]) -> tuple[Values, list[str]]:
    """The values from files or defaults, and the names of outputs that have neither.

    One newline is cut from the end. As on Argo, a folder instead of a file reads as empty.
    """
    values, missing = {}, []
    for name, output in outputs.items():
        file = folder / output.path
        if file.is_file():
            values[name] = decoded(file.read_bytes()).removesuffix("\n")
        elif file.is_dir():
            values[name] = ""
        elif output.default is not None:
            values[name] = output.default.removesuffix("\n")
        else:
            missing.append(name)
    return values, missing
