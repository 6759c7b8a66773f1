"""Handling of SIGTERM and Ctrl-C: at once, except at moments in which that would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from loraline.errors import Stopped

received: list[Stopped] = []
"""What SIGTERM has raised. Where it strikes a callback of the interpreter or the import of a C
extension, the exception is lost or becomes another one; long work looks here."""


AGAIN = 0.05
"""Seconds after which a signal that came in a harmful moment is raised again."""


def listen() -> None:
    """Handle SIGTERM, and Ctrl-C unless it is ignored, as in the background of a script."""
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, ignored):
        signal.signal(signal.SIGINT, interrupt)


def ignore() -> None:
    """Ignore signals from now on: the command ends by itself, and has said why."""
    for number, handler in ((signal.SIGTERM, stop), (signal.SIGINT, interrupt)):
        if signal.getsignal(number) is handler:
            signal.signal(number, ignored)


def ignored(signum: int, frame: FrameType | None) -> None:
    """The handler of a signal that changes nothing; unlike SIG_IGN no child process inherits it."""


def stop(signum: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM."""
    if not defer_in_harmful_moment(stop, signum, frame):
        received.append(Stopped(f"stopped by {signal.Signals(signum).name}; start it again"))
        raise received[0]


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of Ctrl-C."""
    if not defer_in_harmful_moment(interrupt, signum, frame):
        raise KeyboardInterrupt


def defer_in_harmful_moment(
    handler: Callable[..., None], signum: int, frame: FrameType | None
) -> bool:
    """Whether a signal came in a harmful moment; if so, it is raised again after AGAIN."""
    while frame is not None:
        if is_harmful(frame):
            signal.signal(signal.SIGALRM, lambda _, later: handler(signum, later))
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return True
        frame = frame.f_back
    return False


def is_harmful(frame: FrameType) -> bool:
    """Whether an exception that is raised in this frame would keep the process from its end.

    A database transaction that is left open keeps SQLite locked against the step itself, which
    could no longer say how its run ended. A thread that a pool has started and does not know yet
    is never told to end, and the interpreter waits for it for ever.
    """
    module = frame.f_globals.get("__name__", "")
    return "sqlalchemy" in module or (
        module == "concurrent.futures.thread" and frame.f_code.co_name == "submit"
    )


def check() -> None:
    """Raise a signal's exception that was lost."""
    if received:
        raise received[0]


@contextmanager
def deferred() -> Iterator[None]:
    """Defer signals that come while the block runs to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = [
        signal.signal(number, lambda signum, _: pending.append(signum)) for number in numbers
    ]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
