"""How many tokens a pass may have, and what follows when a GPU runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from loraline.errors import UserError
from loraline.training import exchange

if TYPE_CHECKING:
    from torch import Tensor


class TokenBudget:
    """Tokens of a pass of this process; they are halved once, when its GPU runs out of memory."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.halved = False

    def attempt(
        self, work: Callable[[], Tensor], longest: int, make_room: Callable[[], None]
    ) -> Tensor | None:
        """What `work` gives, once more in smaller passes where it runs out of memory.

        `longest` is the tokens of its longest pass. None where it runs out of memory again: other
        processes wait for this one and have to know (`check`).
        """
        for _ in range(2):
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.halved:
                    return None
            # Smaller packs of the same rows: slower, but the same step. Passes are often far from
            # full; half of the budget could be as long as before.
            self.halved = True
            self.tokens = max(1, min(self.tokens, longest) // 2)
            make_room()
        return None

    def check(self, fits: bool, rank: int, world: int) -> None:
        """Raise UserError in all processes where the work of one does not fit its GPU.

        `fits` is about the work of this one, of number `rank` of `world`.
        """
        short, budget = exchange.highest([0 if fits else rank + 1, -self.tokens])
        if short:
            where = f" of process {short - 1}" if world > 1 else ""
            raise UserError(
                f"a step does not fit the GPU{where}, not even {-budget} tokens a pass; lower "
                "max_length, set memory: small, or use a larger card"
            )
