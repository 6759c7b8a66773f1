"""A real MLflow server, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ports import free_port

COMMAND = (sys.executable, "-m", "mlflow", "server")


@contextmanager
def serving(
    folder: Path,
    *options: str,
    host: str = "127.0.0.1",
    command: Sequence[str] = COMMAND,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """The address of a server that keeps all it has in a folder, until the block ends."""
    port = free_port(host)
    words = [*command, f"--host={host}", f"--port={port}", *options]
    words.append(f"--artifacts-destination={folder / 'artifacts'}")
    variables = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db"} | (environment or {})
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            words,
            env=os.environ | variables,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://{host}:{port}/health"):
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the server did not start")
        yield f"http://{host}:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
