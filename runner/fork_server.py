"""A process that has imported slow modules once, and of which Python programs begin as forks.

    python -m runner.fork_server REPLIES MODULE…

Standard input is a socket, which brings a JSON line for each program and with it the two file
descriptors that are to be its output and its error. REPLIES is the file descriptor for the answers,
a JSON line each: `{"ready": true}`, `{"began": pid}` in the order of the requests, and
`{"ended": pid, "code": exit code}`. It ends with its input. A program begins as the interpreter
would begin it: with its own arguments, folder, variables, session and `__main__`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import types
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_FORKED = 3
"""Exit code where modules cannot be imported, or began threads, which no fork would have."""


@dataclass(frozen=True)
class Request:
    """A program to begin."""

    arguments: list[str]
    """The script and its arguments."""
    folder: str
    environment: dict[str, str]


def main() -> None:
    replies, *modules = sys.argv[1:]
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        print(f"programs are started one by one: {error}", file=sys.stderr)
        sys.exit(NOT_FORKED)
    if threading.active_count() > 1:
        sys.exit(NOT_FORKED)
    # Threads of linear algebra, which Python 3.12 warns of, are stopped by their library at a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    # The programs share what is imported; a collection would copy it page by page.
    gc.freeze()
    if request := serve(int(replies)):
        run(request)


def serve(replies: int) -> Request | None:
    """Fork for each request; the request in the fork, None in the server when its input ends."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    say(replies, ready=True)
    asking = socket.socket(fileno=0)
    lines, written_to = b"", list[int]()
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 512)
            reap(replies)
        if 0 not in readable:
            continue
        read, descriptors, _, _ = socket.recv_fds(asking, 2**16, 16)
        if not read:
            return None
        written_to += descriptors
        *requests, lines = (lines + read).split(b"\n")
        for request in requests:
            output, error, *written_to = written_to
            server_end, fork_end = socket.socketpair()
            if pid := os.fork():
                fork_end.close()
                # Until it leads a session of its own, nobody could end what it starts.
                server_end.recv(5)
                say(replies, began=pid)
                # Until the runner is told, it must not begin: the runner would begin it again.
                with suppress(BrokenPipeError):
                    server_end.send(b"begin")
                server_end.close()
                os.close(output)
                os.close(error)
                continue
            os.setsid()
            server_end.close()
            wait_to_begin(fork_end)
            for number, end in ((1, output), (2, error)):
                os.dup2(end, number)
                os.close(end)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (*written_to, replies, woken, waker):
                os.close(descriptor)
            asking.detach()
            return Request(**json.loads(request))


def wait_to_begin(fork_end: socket.socket) -> None:
    """Let a fork wait for the server's word; end it where the server is killed before that."""
    with fork_end, suppress(ConnectionError):
        fork_end.send(b"leads")
        if fork_end.recv(5):
            return
    os._exit(NOT_FORKED)


def reap(replies: int) -> None:
    """Say how the programs ended that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say(replies, ended=pid, code=os.waitstatus_to_exitcode(status))


def say(replies: int, **answer: Any) -> None:
    os.write(replies, json.dumps(answer).encode() + b"\n")


def run(request: Request) -> None:
    """Be the program, as `python SCRIPT ARGUMENTS` would be."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    script = request.arguments[0]
    sys.argv[:] = request.arguments
    sys.path[0] = str(Path(script).resolve().parent)
    program = types.ModuleType("__main__")
    program.__file__ = str(Path(script).absolute())
    sys.modules["__main__"] = program
    exec(compile(Path(script).read_bytes(), program.__file__, "exec"), vars(program))  # noqa: S102


if __name__ == "__main__":
    main()
