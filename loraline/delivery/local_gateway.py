"""The gateway on this machine, in front of a server that `local` started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loraline import web
from loraline.delivery.local import (
    ROOT,
    Running,
    Say,
    api_key,
    cause,
    check_port,
    exit_in_words,
    guarded,
    stop,
)
from loraline.errors import TryAgain, UserError

LOG = "gateway.log"
START_SECONDS = 60
GRACE_SECONDS = 40
"""Longer than the gateway lets running answers end (GATEWAY_DRAIN_S)."""


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def death(self) -> str:
        """One sentence on a gateway that has ended."""
        code = self.process.returncode
        why = "" if code < 0 else f": {cause(self.log)}"
        return f"the gateway {exit_in_words(code)}{why} (log: {self.log})"


@contextmanager
def start(server: Running, port: int, *, say: Say = print) -> Iterator[Gateway]:
    """Start the gateway on 127.0.0.1 in front of the server, and stop it in the end.

    Settings of the environment count, but for its address and servers. Raises UserError when the
    port is taken or the gateway does not come up.
    """
    check_port(port, "--gateway-port")
    log = server.folder / LOG
    say(f"Starting the gateway; its log is {log}")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"],
            env={**os.environ, **variables(server, port)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    guard = guarded(process)
    gateway = Gateway(f"http://127.0.0.1:{port}", log, process)
    try:
        wait_until_ready(gateway)
        yield gateway
    finally:
        stop(process, GRACE_SECONDS, guard)


def variables(server: Running, port: int) -> dict[str, str]:
    """The gateway's settings: its address, and the servers behind it."""
    entry = {
        "url": server.url,
        "contract": str(server.folder / "config" / "contract.json"),
        "name": server.adapter,
        "uri": server.uri,
    }
    env = {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_UPSTREAMS": json.dumps([entry]),
        "GATEWAY_DATA_DIR": os.environ.get("GATEWAY_DATA_DIR", str(server.folder / "gateway")),
        # The checkout's gateway, whatever the current folder is.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    return env | ({"GATEWAY_VLLM_API_KEY": api_key()} if api_key() else {})


def wait_until_ready(gateway: Gateway) -> None:
    """Return when it lists the server's models; UserError if it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if gateway.process.poll() is not None:
            raise UserError(f"{gateway.death()}; --no-gateway serves without it")
        if is_ready(gateway.url):
            return
        time.sleep(0.2)
    raise UserError(f"the gateway was not ready after {START_SECONDS} s (log: {gateway.log})")


def is_ready(url: str) -> bool:
    try:
        return web.request(f"{url}/ready", seconds=5).status == 200
    except (UserError, TryAgain):
        return False
