"""PEFT's LoRA layers with their update added by the product that computes it, in its type.

PEFT computes base(x) + scaling * B(A(dropout(x))) in separate passes over the output: the
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


def keep_input_dtype(model: PeftModel) -> None:
    """Let DoRA layers on a 4-bit base return the type of their input, as other layers do.

    Under a GPU's autocast PEFT leaves their answer in the magnitude's float32. That widens the
    residual stream and all that is kept of it, and an unpacked base would be trained differently.
    """
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        dora = isinstance(module, LoraLayer) and module.lora_variant
        if dora and isinstance(module.get_base_layer(), Linear4bit):
            module.register_forward_hook(lambda _, inputs, answer: answer.to(inputs[0].dtype))


def forward(self: Any, x: Tensor) -> Tensor:
    """base(x) + scaling * dropout(x) @ A.T @ B.T, shapes (..., in) to (..., out)."""
    (name,) = self.active_adapters
    flat = x.reshape(-1, x.shape[-1])
    output = self.base_layer(flat)
    # The adapter's weights are float32, the products have the type of the base's.
    low = (
        self.lora_dropout[name](flat).to(output.dtype) @ self.lora_A[name].weight.to(output.dtype).T
    )
    output.addmm_(low, self.lora_B[name].weight.to(output.dtype).T, alpha=self.scaling[name])
    return output.view(*x.shape[:-1], -1)
