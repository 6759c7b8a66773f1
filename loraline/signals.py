"""When SIGTERM and Ctrl-C are heard: at once, but for some moments in which that would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loraline.errors import Stopped

received: list[Stopped] = []
"""What SIGTERM has raised. Where it strikes a callback of the interpreter or the import of a C
extension, the exception is lost or becomes another one; long work looks here."""


def stop(signum: int, frame: Any) -> None:
    """The handler of SIGTERM."""
    received.append(Stopped(f"stopped by {signal.Signals(signum).name}; start it again"))
    raise received[0]


def check() -> None:
    """Raise what was received and lost."""
    if received:
        raise received[0]


@contextmanager
def held() -> Iterator[None]:
    """Signals that come while the block runs are heard at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda signum, _: came.append(signum)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
