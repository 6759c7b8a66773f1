"""A server that was started here ends with the process that started it, whatever ends that."""

from __future__ import annotations

import subprocess
import sys

from loraline.delivery import local

SERVER = ["sh", "-c", "sleep 120 & wait"]

STARTER = f"""
import subprocess, time
from loraline.delivery import local
local.guarded(subprocess.Popen({SERVER!r}, start_new_session=True))
print("started", flush=True)
time.sleep(120)
"""


def test_a_server_does_not_outlive_a_starter_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        starter.kill()
        # The server and its child have this standard output too: it ends with the last of them.
        assert starter.communicate(timeout=60) == ("", None)


def test_a_guard_ends_with_its_server() -> None:
    server = subprocess.Popen(SERVER, start_new_session=True)
    guard = local.guarded(server)
    local.stop(server, 10, guard)
    assert server.returncode is not None
    assert guard.returncode is not None
