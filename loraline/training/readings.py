"""A step's numbers, read when the next step is under way.

To read a number from a GPU is to wait for it, and while the host waits it gives the GPU nothing to
do. So the numbers are sent off at the end of their step and read at the end of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from loraline.training import exchange


@dataclass(frozen=True)
class Reading:
    """Numbers of one step on their way to the host."""

    step: int
    epoch: float
    learning_rate: float
    pace: float
    """Tokens a second since the step before."""

    values: Tensor
    """Loss and norm of the gradient, float64."""

    sent: Any
    """CUDA event after which the numbers have arrived; None without a GPU."""

    @classmethod
    def of(cls, state: Any, loss: Tensor, norm: Any, rate: float, pace: float) -> Reading:
        """Send off the mean of the processes' losses and the norm of their gradient.

        Every process has to call it; `logs` reads the numbers.
        """
        mean = loss.detach().double() / (
            distributed.get_world_size() if exchange.is_distributed() else 1
        )
        mean = exchange.reduce(mean.reshape(1), distributed.ReduceOp.SUM)
        values = torch.cat([mean, torch.as_tensor(norm, device=loss.device).double().reshape(1)])
        sent = None
        if values.is_cuda:
            on_host = torch.empty_like(values, device="cpu", pin_memory=True)
            on_host.copy_(values, non_blocking=True)
            values, sent = on_host, torch.cuda.Event()
            sent.record()
        return cls(state.global_step, state.epoch, rate, pace, values, sent)

    def logs(self) -> dict[str, float]:
        """The numbers by their names in the trainer's history; waits for them."""
        if self.sent is not None:
            self.sent.synchronize()
        loss, norm = self.values.tolist()
        return {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self.learning_rate,
            "tokens_per_second": self.pace,
        }
