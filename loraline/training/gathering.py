"""Bytes of weights that are shared out, as they are gathered on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraline.base import architectures
from loraline.base.architectures import decoder_layer, linears
from loraline.base.targets import MERGERS

if TYPE_CHECKING:
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile


def layers_gathered(recipe: Profile, base: Base, cards: int) -> int:
    """Bytes of the layers that are gathered at once: one that computes, and the next on its way.

    A process that is alone copies a layer only when it computes: for a group of one, torch's
    `FSDPParamGroup.unshard` gathers nothing ahead. A layer that learns has its gradients beside it,
    in bfloat16 and once more in float32 as they are summed.
    """
    layer = layer_parameters(base)
    at_once = 1 if cards == 1 else 2
    if recipe.train == "full":
        return at_once * 2 * layer + (6 * layer if recipe.tune.language else 0)
    bytes_a_weight = 4.127 / 8 if recipe.quantization == "nf4" else 2
    return int(at_once * layer * bytes_a_weight)


def other_weights_gathered(recipe: Profile, base: Base) -> int:
    """Bytes of all weights outside the decoder layers.

    They stay gathered through the whole backward pass, and so do the gradients of those that learn.
    """
    layers = layer_parameters(base) * int(
        architectures.text_config(base.config)["num_hidden_layers"]
    )
    others = sum(architectures.parameters(base.config)) - layers
    if recipe.train != "full":
        return 2 * others
    learned = learned_parameters(recipe, base)[0] - (layers if recipe.tune.language else 0)
    return 2 * others + 6 * learned


def layer_parameters(base: Base) -> int:
    """Parameters of a layer of the language model."""
    text = architectures.text_config(base.config)
    return sum(inputs * outputs for inputs, outputs in decoder_layer(text).values())


def learned_parameters(recipe: Profile, base: Base) -> tuple[int, int]:
    """Parameters of the base that learn under `train: full`, and those that do not."""
    total = sum(architectures.parameters(base.config))
    vision = architectures.vision_parameters(base.config) if recipe.modality == "vision" else 0
    merger = sum(
        (inputs + 1) * outputs
        for name, (inputs, outputs) in linears(base.config).items()
        if name.startswith(MERGERS)
    )
    learned = total - vision if recipe.tune.language else 0
    learned += merger if recipe.trains_merger else 0
    learned += vision - merger if recipe.trains_tower else 0
    return learned, total - learned
