"""The memory that a training may plan with: of its cards, and of the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEADROOM = 0.92
"""Share of the free memory that is planned with; the allocator loses the rest to fragments."""


def free() -> int | None:
    """Bytes that every process of the training could still allocate on its GPU; None without one.

    The fewest of all, so that all have the same plan.
    """
    import torch

    from loraline.training import exchange

    if not torch.cuda.is_available():
        return None
    return exchange.lowest(torch.cuda.mem_get_info()[0])


def host() -> int:
    """Bytes of the host's memory that are available to all processes of the training together."""
    from loraline.process import share

    lines = Path("/proc/meminfo").read_text().splitlines()
    named = (line.partition(":") for line in lines)
    sizes = {name: int(value.split()[0]) * 1024 for name, _, value in named}
    return min(share.memory() or sizes["MemTotal"], sizes["MemAvailable"])


@dataclass(frozen=True)
class Machine:
    """What a training may spend: on its card with the least free, and beside its cards."""

    free: int
    """Bytes free on a card."""

    cards: int = 1
    host: int = 0
    """Bytes of the host's memory."""

    def fits(self, on_card: int, in_host: int) -> bool:
        """Whether these bytes fit, with room for fragments."""
        return on_card <= self.free * HEADROOM and in_host <= self.host * HEADROOM

    @classmethod
    def measured(cls) -> Machine | None:
        """The machine of this process; None without a GPU."""
        from loraline.training import launch

        on_card = free()
        return None if on_card is None else cls(on_card, launch.world(), host())
