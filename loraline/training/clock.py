"""How long a training has taken, without its evaluations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts seconds from the beginning of a training, and none while it is paused."""

    def __init__(self) -> None:
        self.began = self.ended = self.paused_seconds = 0.0
        self.last_pace = 0.0, 0
        """When the pace was asked for, and the tokens until then."""

    @contextmanager
    def running(self) -> Iterator[None]:
        self.began = time.monotonic()
        # The trainer is built long before it trains.
        self.last_pace = self.began, 0
        try:
            yield
        finally:
            self.ended = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.paused_seconds += time.monotonic() - began

    def seconds(self) -> float:
        """How long it has trained so far."""
        return (
            (self.ended or time.monotonic()) - self.began - self.paused_seconds
            if self.began
            else 0.0
        )

    def pace(self, tokens: int) -> float:
        """Tokens a second since the last time that it was asked; `tokens` are all so far."""
        current = (time.monotonic() - self.paused_seconds, tokens)
        seconds, passed = (
            after - before for after, before in zip(current, self.last_pace, strict=True)
        )
        self.last_pace = current
        return passed / max(seconds, 1e-9)
