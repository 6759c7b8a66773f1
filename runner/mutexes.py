"""A workflow's mutexes: one template at a time runs with each."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack

from runner.containers import Stop
from runner.references import NodeError


class Mutexes:
    """The mutexes of one run by name; each exists from its first use on."""

    def __init__(self) -> None:
        self.locks: dict[str, asyncio.Lock] = {}

    async def acquire(
        self, stack: AsyncExitStack, names: list[str], stop: Stop, seconds: float
    ) -> bool:
        """Acquire mutexes until the stack ends, in sorted order, so that no two nodes wait for
        each other. False if the run stops, or if one is not free within `seconds`.
        """
        longest = None if math.isinf(seconds) else seconds
        for name in sorted(names):
            lock = self.locks.setdefault(name, asyncio.Lock())
            if not await stop.unless_requested(lock.acquire(), longest):
                return False
            stack.callback(lock.release)
        return True


def refuse_deadlock(locks: list[str], locked: frozenset[str]) -> None:
    """Refuse a lock that a caller of this node holds: it would never be released."""
    for lock in locks:
        if lock in locked:
            raise NodeError(f"{lock} is held by a template that waits for this one; on Argo, too, "
                            "neither could ever go on")  # fmt: skip
