"""A base that is stored in few bits: what an adapter on it needs to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.profiles.profile import Profile

KERNELS = ("gptqmodel", "optimum")
"""Packages through which transformers multiplies by GPTQ weights, and PEFT adapts them."""


def check_trainable(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, a quantized base that no adapter can be trained on here.

    `config` is the base's config.json. One of bitsandbytes is refused for its server, elsewhere.
    """
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method in (None, "bitsandbytes"):
        return
    if method != "gptq":
        raise UserError(
            f"{recipe.base} is quantized by {method}, on which nothing is trained here; name the "
            "model that it was made from, or its GPTQ"
        )
    if recipe.train == "full":
        raise UserError(f"{recipe.base} is quantized by GPTQ, and weights of few bits cannot learn")
    if recipe.quantization != "none":
        raise UserError(
            f"{recipe.base} is quantized by GPTQ, and is not rounded once more: set quantization: "
            "none"
        )
    if recipe.init_lora_weights:
        raise UserError(
            f"{recipe.base} is quantized by GPTQ, and init_lora_weights takes components out of "
            "whole weights: leave it out, or name the model that the base was made from"
        )
    if missing := [name for name in KERNELS if find_spec(name) is None]:
        raise UserError(
            f"{recipe.base} is quantized by GPTQ, whose kernels come with {' and '.join(KERNELS)}; "
            f"this environment lacks {' and '.join(missing)}"
        )
