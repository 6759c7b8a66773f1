"""Which modules of a base an adapter is attached to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraline.profiles.profile import Profile

VISION_TOWER = "model.visual"
"""Module path of the vision tower and its merger in Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

MERGERS = (f"{VISION_TOWER}.merger", f"{VISION_TOWER}.deepstack_merger_list")
"""Module paths of the mergers; Qwen3-VL has several."""


def learns(recipe: Profile, name: str) -> bool:
    """Whether a parameter of the base learns under `train: full`, by its path."""
    if name.startswith(MERGERS):
        return recipe.trains_merger
    return recipe.trains_tower if name.startswith(VISION_TOWER) else recipe.tune.language


def targets_of(recipe: Profile) -> str:
    """Regex over the paths of the modules that a profile adapts."""
    return target_modules(
        recipe.modality, recipe.projections, recipe.trains_merger, recipe.trains_tower
    )


def target_modules(
    modality: str, projections: Sequence[str], merger: bool, tower: bool = False
) -> str:
    """Regex over module paths, for PEFT: projections of the language model, and the layers of the
    merger and the tower if they are adapted.

    Anchored at the language model because Qwen2.5-VL's vision tower has gate, up and down
    projections of the same names, and vLLM drops tower weights unless a flag names them.
    """
    patterns = []
    if projections:
        language_model = r"model\.language_model" if modality == "vision" else "model"
        names = "|".join(projections)
        patterns.append(rf"{language_model}\.layers\.\d+\.(?:self_attn|mlp)\.(?:{names})")
    if merger:
        patterns.append(
            r"model\.visual\.(?:merger\.mlp\.[02]"
            r"|(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
        )
    if tower:
        # Qwen2-VL's names, Qwen2.5-VL's and Qwen3-VL's. The patch embedding stays out: it is a
        # convolution, and vLLM applies an adapter on it wrongly.
        patterns.append(
            r"model\.visual\.blocks\.\d+\.(?:attn\.(?:qkv|proj)"
            r"|mlp\.(?:fc[12]|(?:gate|up|down)_proj|linear_fc[12]))"
        )
    return "|".join(patterns)
