"""Child processes that are waited for, as long as a test can bear."""

from __future__ import annotations

import os
import time


def exit_code(pid: int, seconds: float) -> int | None:
    """How a child ended, negative for a signal; None if it still runs after this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None
