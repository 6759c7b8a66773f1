"""PEFT's LoRA layers with their update added by the product that computes it.

PEFT computes base(x) + scaling * B(A(dropout(x))) in passes of their own over the output: the
product with B, the scaling, a copy for 4-bit bases, the sum. They cost about a twentieth of a
training step and, without checkpointing, memory.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def add_in_place(model: PeftModel) -> None:
    """Give every plain LoRA layer of a model in training the forward below; DoRA's keep PEFT's."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and not module.lora_variant:
            module.forward = types.MethodType(forward, module)


def forward(self: Any, x: Tensor) -> Tensor:
    """base(x) + scaling * dropout(x) @ A.T @ B.T, shapes (..., in) to (..., out)."""
    (name,) = self.active_adapters
    flat = x.reshape(-1, x.shape[-1])
    out = self.base_layer(flat)
    # The adapter's weights are float32, the products have the type of the base's.
    low = self.lora_dropout[name](flat).to(out.dtype) @ self.lora_A[name].weight.to(out.dtype).T
    out.addmm_(low, self.lora_B[name].weight.to(out.dtype).T, alpha=self.scaling[name])
    return out.view(*x.shape[:-1], -1)
