"""The base as it is trained: frozen, with a new adapter, or learning itself."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from loraline.base.load import load
from loraline.base.locate import Base
from loraline.base.targets import VISION_TOWER, learns, targets_of
from loraline.training import lora

if TYPE_CHECKING:
    from peft import PeftModel

    from loraline.profiles.profile import Profile
    from loraline.training.memory import Plan


def for_training(base: Base, recipe: Profile, plan: Plan) -> Any:
    """The frozen base with a new adapter, or the base alone with what `train: full` lets learn.

    What is computed is the same for every plan.
    """
    import torch

    # Without a GPU, float32 is the fast type: few CPUs multiply bfloat16.
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    four_bit = recipe.quantization == "nf4"
    # Whole, a base that is shared out may be too large for a card; packed in 4 bits it is not.
    on_host = plan.sharded and not four_bit
    model = load(
        base,
        recipe.modality,
        quantization=recipe.quantization,
        dtype=dtype,
        on_host=on_host,
        both_layouts=plan.dequantized,
    )
    if recipe.train == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = learns(recipe, name)
        return model
    if four_bit and plan.dequantized:
        # The same rounded weights, unpacked once instead of in every pass.
        model = model.dequantize()
        gc.collect()  # The packed weights are in reference cycles.
    return with_adapter(model, recipe)


def with_adapter(model: Any, recipe: Profile) -> PeftModel:
    """The base frozen, with the profile's new adapter on it."""
    from peft import LoraConfig, get_peft_model

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
        lora.keep_input_dtype(tuned)
    return tuned


def causal(model: Any) -> Any:
    """The model without what PEFT puts around it, if it does."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def language_parameters(model: Any) -> int:
    """Parameters of all but the vision parts."""
    return sum(count for name, count in sizes(model) if VISION_TOWER not in name)


def sizes(model: Any) -> Iterator[tuple[str, int]]:
    """Names and sizes of a model's parameters; packed 4-bit weights count as what they hold."""
    for name, parameter in model.named_parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        yield name, math.prod(shape) if shape else parameter.numel()


def recompute_activations(model: Any) -> None:
    """Checkpoint every layer that has something to learn before it."""
    base = causal(model)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers lets embeddings demand gradients, for checkpointing of the old kind; it sends the
    # backward pass through a frozen vision tower.
    base.disable_input_require_grads()
