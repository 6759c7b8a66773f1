"""Which modules of a base an adapter is attached to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraline.profiles import Profile

VISION_TOWER = "model.visual"
"""Module path of the vision tower and its merger in Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

TOWER_BLOCKS = f"{VISION_TOWER}.blocks"
"""Module path of the tower's blocks; what else has linear layers in the tower is a merger."""


def targets_of(recipe: Profile) -> str:
    """Regex over the paths of the modules that a profile adapts."""
    return target_modules(
        recipe.modality,
        recipe.target_modules,
        recipe.merger_learning_rate is not None,
        recipe.tower_learning_rate is not None,
    )


def target_modules(
    modality: str, projections: Sequence[str], merger: bool, tower: bool = False
) -> str:
    """Regex over module paths, for PEFT: the language model's projections, and what is asked for of
    the merger and the tower's blocks.

    Anchored at the language model because Qwen2.5-VL's vision tower has gate, up and down
    projections of the same names, and vLLM drops tower weights that it was not told of.
    """
    language_model = r"model\.language_model" if modality == "vision" else "model"
    names = "|".join(projections)
    pattern = rf"{language_model}\.layers\.\d+\.(?:self_attn|mlp)\.(?:{names})"
    if merger:
        pattern += (
            r"|model\.visual\.(?:merger\.mlp\.[02]"
            r"|(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
        )
    if tower:
        # Qwen2-VL's names, Qwen2.5-VL's and Qwen3-VL's. The patch embedding stays out: it is a
        # convolution, and vLLM applies an adapter on it wrongly.
        pattern += (
            r"|model\.visual\.blocks\.\d+\.(?:attn\.(?:qkv|proj)"
            r"|mlp\.(?:fc[12]|(?:gate|up|down)_proj|linear_fc[12]))"
        )
    return pattern
