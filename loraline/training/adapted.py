"""The frozen base with a new adapter, ready to train."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from loraline.base.load import load
from loraline.base.locate import Base
from loraline.base.targets import targets_of
from loraline.training import lora

if TYPE_CHECKING:
    from peft import PeftModel

    from loraline.profiles import Profile
    from loraline.training.memory import Plan


def for_training(base: Base, recipe: Profile, plan: Plan) -> PeftModel:
    """The frozen base with a new adapter; what is computed is the same for every plan."""
    import torch
    from peft import LoraConfig, get_peft_model

    # Without a GPU, float32 is the fast type: few CPUs multiply bfloat16.
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    four_bit = recipe.quantization == "nf4"
    model = load(base, recipe.modality, quantize=four_bit, dtype=dtype)
    if four_bit and plan.dequantized:
        # The same rounded weights, unpacked once instead of in every pass.
        model = model.dequantize()
        gc.collect()  # The packed weights are in reference cycles.
    tuned = get_peft_model(
        model,
        LoraConfig(
            r=recipe.r,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            use_rslora=recipe.use_rslora,
            use_dora=recipe.use_dora,
            init_lora_weights=recipe.init_lora_weights or True,
            target_modules=targets_of(recipe),
            task_type="CAUSAL_LM",
        ),
    )
    lora.add_in_place(tuned)
    if recipe.use_dora:
        lora.keep_type(tuned)
    return tuned
