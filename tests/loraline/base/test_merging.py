"""A merged model says what base and adapter said, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import ARCHITECTURES, VISION
from peft import LoraConfig, get_peft_model

from loraline.base import merging
from loraline.base.load import load
from loraline.base.locate import locate
from loraline.base.targets import target_modules
from loraline.errors import UserError

TinyBase = Callable[[str], Path]


def tuned(base: Path, *, quantization: str = "none", dtype: str = "float32", **options: Any) -> Any:
    """A base with an adapter on all its parts, whose updates are about `scale` wide."""
    located = locate(str(base), None)
    vision = located.architecture.endswith("ConditionalGeneration")
    modality = "vision" if vision else "text"
    scale = options.pop("scale", 0.3)
    projections = ("q_proj", "down_proj")
    targets = target_modules(modality, projections, merger=vision, tower=vision)
    torch.manual_seed(0)
    model = load(located, modality, quantization=quantization, dtype=dtype)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, **options))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale)
        if "lora_magnitude" in name:
            weight.data *= 1.1
    return adapted


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_says_what_base_and_adapter_said(
    architecture: str, use_dora: bool, tiny_base: TinyBase
) -> None:
    adapted = tuned(tiny_base(architecture), use_dora=use_dora).eval()
    asked = merging.probe(adapted.get_base_model())
    wanted = merging.logits(adapted, asked)
    merged = merging.merge(adapted)
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merging.logits(merged, asked), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", VISION)
def test_the_probe_asks_the_tower_too(architecture: str, tiny_base: TinyBase) -> None:
    adapted = tuned(tiny_base(architecture)).eval()
    model = adapted.get_base_model()
    asked = merging.probe(model)
    before = merging.logits(adapted, asked)
    for name, weight in adapted.named_parameters():
        if "visual.blocks" in name and "lora_B" in name:
            weight.data.zero_()
    assert merging.distance(merging.logits(adapted, asked), before) > 1e-3


def test_a_quantized_base_is_refused(tiny_base: TinyBase) -> None:
    with pytest.raises(UserError, match="merged into an unquantized base"):
        merging.merge(tuned(tiny_base("mistral"), quantization="nf4"))


def test_an_update_that_rounding_swallows_is_refused(tiny_base: TinyBase) -> None:
    with pytest.raises(UserError, match=r"not the same once it is merged .* unmerged"):
        merging.merge(tuned(tiny_base("mistral"), dtype="bfloat16", scale=1e-4))
    merging.merge(tuned(tiny_base("mistral"), dtype="float32", scale=1e-4))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_a_short_type_is_no_reason_to_refuse(tiny_base: TinyBase, dtype: str) -> None:
    merging.merge(tuned(tiny_base("mistral"), dtype=dtype))
