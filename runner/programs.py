"""How a container's program becomes a process: started, or forked with its imports done."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from runner.logs import Writers, terminal


class Program(Protocol):
    """A process at work, which leads a session of its own."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...


class Fork:
    """A program that is a child of the fork server's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)


class Programs:
    """Starts programs; with `preload`, scripts as forks of a process that has imported it."""

    def __init__(self) -> None:
        self.lock = -1
        """File descriptor that every program inherits, so the run stays locked while one lives."""
        self.preload: Sequence[str] = ()
        self.server: ForkServer | None = None

    async def warm(self, root: Path) -> None:
        """Begin to import what is to be preloaded; programs wait for it when they begin."""
        # Libraries of macOS do not survive a fork.
        if self.preload and sys.platform == "linux":
            self.server = ForkServer(self.preload, self.inherited)
            await self.server.start(root)

    async def start(
        self, command: list[str], root: Path, environment: Mapping[str, str], writers: Writers
    ) -> Program:
        """Start a program in the root; OSError or ValueError if it cannot be."""
        variables = {**os.environ, **terminal(), **environment}
        try:
            if self.server and is_script(command, root, environment):
                forked = await self.server.fork(command[1:], root, variables, writers)
                if forked is not None:
                    return forked
            return await self.spawn(command, root, variables, writers)
        finally:
            writers.close()

    async def spawn(
        self, command: list[str], root: Path, variables: Mapping[str, str], writers: Writers
    ) -> Program:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=root,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writers.output,
            stderr=writers.error,
            start_new_session=True,
            pass_fds=self.inherited,
        )

    @property
    def inherited(self) -> tuple[int, ...]:
        return (self.lock,) if self.lock >= 0 else ()

    async def end(self) -> None:
        """End the fork server; the programs that it forked have ended, or are on their own."""
        if self.server:
            await self.server.end()


def is_script(command: list[str], root: Path, environment: Mapping[str, str]) -> bool:
    """Whether a command is this interpreter with a script, and no variable is for the former."""
    return (
        command[0] == sys.executable
        and len(command) > 1
        and command[1].endswith(".py")
        and (root / command[1]).is_file()
        and not any(name.startswith("PYTHON") for name in environment)
    )


class ForkServer:
    """The runner's side of `runner.fork_server`."""

    def __init__(self, modules: Sequence[str], inherited: tuple[int, ...]) -> None:
        self.modules, self.inherited = modules, inherited
        self.waiting: deque[asyncio.Future[Fork | None]] = deque()
        self.forks: dict[int, Fork] = {}

    async def start(self, root: Path) -> None:
        loop = asyncio.get_running_loop()
        answers, replies = os.pipe()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.requests, theirs = socket.socketpair()
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "runner.fork_server", str(replies), *self.modules),
            cwd=root,
            stdin=theirs.fileno(),
            start_new_session=True,
            pass_fds=(*self.inherited, replies),
        )
        theirs.close()
        os.close(replies)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answers, "rb")
        )
        self.listening = asyncio.ensure_future(self.listen(reader))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hear how programs begin and end, to the server's end."""
        async for line in reader:
            answer = json.loads(line)
            if "ready" in answer:
                self.ready.set_result(True)
            elif "began" in answer:
                fork = self.forks[answer["began"]] = Fork(answer["began"])
                self.waiting.popleft().set_result(fork)
            else:
                self.forks.pop(answer["ended"]).ended.set_result(answer["code"])
        if not self.ready.done():
            self.ready.set_result(False)
        for answer in self.waiting:
            answer.set_result(None)
        # Killed, for want of memory perhaps. Nobody is left to say how its children end.
        for fork in self.forks.values():
            with suppress(ProcessLookupError):
                os.killpg(fork.pid, signal.SIGKILL)
            fork.ended.set_result(-signal.SIGKILL)

    async def fork(
        self, arguments: list[str], root: Path, variables: Mapping[str, str], writers: Writers
    ) -> Fork | None:
        """Begin a script as a fork; None if there is no server to do it."""
        if not await asyncio.shield(self.ready) or self.listening.done():
            return None
        request = {"arguments": arguments, "folder": str(root), "environment": dict(variables)}
        line = json.dumps(request).encode() + b"\n"
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        with suppress(ConnectionError):
            # The server does nothing but read, so that this waits for a moment at most.
            ends = [writers.output, writers.error]
            self.requests.sendall(line[socket.send_fds(self.requests, [line], ends) :])
        forked: Fork | None = await answer
        return forked

    async def end(self) -> None:
        self.requests.close()
        # One that still imports does not read its input.
        if not self.ready.done():
            with suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        await self.listening
