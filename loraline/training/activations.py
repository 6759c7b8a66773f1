"""Bytes that a forward pass keeps for the backward pass, tensor by tensor as autograd does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraline.base.architectures import head_dim, kv_heads, layer_of, text_config, tower_block

if TYPE_CHECKING:
    from loraline.base.encoding import Row
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile


def kept_by_layer(base: Base, recipe: Profile, *, fused: bool) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass, in bfloat16."""
    text = text_config(base.config)
    width, inner, heads = (
        text[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    queries, keys = heads * head_dim(text), kv_heads(text) * head_dim(text)
    model = str(text.get("model_type", ""))
    each = 4 if model.startswith("gemma3") else 2
    norms = each * 2 * width
    if model.startswith(("qwen3", "gemma3")):
        norms += 2 * (queries + keys)
    # Queries, keys, values, output, and the softmax's normalizer in float32.
    attention = 2 * (2 * queries + 2 * keys) + 4 * heads
    gated = 2 * 2 * inner
    if not fused:
        # Norms widen to float32 and keep the normalized input too; the activation keeps its result.
        norms += each * 6 * width
        gated += 2 * inner
    read = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention")
    read |= {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "gated"}
    read |= {"qkv_proj": "attention", "gate_up_proj": "mlp"}
    layer = layer_of(base.architecture, text)
    sizes = {name.rpartition(".")[2]: size for name, size in layer.items()}
    learning = sizes if recipe.train == "full" and recipe.tune.language else recipe.projections
    adapted = {name: sizes[name] for name in learning}
    # Layers that read the same tensor keep it once; attention keeps its output anyway.
    once = {read[name]: size for name, (size, _) in adapted.items() if name in read}
    lora = kept_by_adapters(list(adapted.values()), sum(once.values()), recipe)
    return norms + attention + gated + lora


def kept_by_adapters(sizes: Sequence[tuple[int, int]], once: int, recipe: Profile) -> int:
    """Bytes a token that what learns in layers of these sizes keeps for the backward pass.

    `once` is the size of the tensors that they read, each of them counted once: all that weights
    that learn themselves need.
    """
    if recipe.train == "full":
        return 2 * once
    low = 2 * recipe.rank * len(sizes)
    if recipe.lora_dropout:
        # Every adapted layer drops on its own: a masked copy and the mask, a byte a value.
        low += sum(3 * inputs for inputs, _ in sizes)
    elif recipe.use_dora:
        low += sum(2 * inputs for inputs, _ in sizes)
    else:
        low += 2 * once
    # Of a magnitude's gradient: what it multiplies, the base's output and the adapter's.
    return low + (sum(4 * outputs for _, outputs in sizes) if recipe.use_dora else 0)


def tower_activations(
    recipe: Profile,
    base: Base,
    rows: Sequence[Row],
    tokens: int,
    *,
    checkpointing: bool,
    fused: bool,
) -> tuple[int, int]:
    """Bytes that an adapted tower keeps for its backward pass, and those of one block run again.

    A frozen tower keeps nothing; behind an adapted merger alone, only the mergers do.
    """
    if not recipe.trains_vision:
        return 0, 0
    vision = base.config["vision_config"]
    patches = visual_tokens(base, rows, tokens) * vision.get("spatial_merge_size", 2) ** 2
    block = tower_block(base.architecture, vision)
    width, (inner, _) = block["attn.qkv"][0], list(block.values())[-1]
    mergers = 1 + len(vision.get("deepstack_visual_indexes", []))
    # A float32 norm, the activation's input, and the inputs of two adapted layers.
    kept = mergers * patches * (4 + 2 + 2 * (3 if recipe.lora_dropout else 2)) * width
    if not recipe.trains_tower:
        return kept, 0
    of_block = kept_by_block(base, recipe, fused=fused)
    if checkpointing:
        again = patches * (of_block + 4 * inner + 2 * width)
        return kept + patches * vision["depth"] * 2 * width, again
    return kept + patches * vision["depth"] * of_block, 0


def visual_tokens(base: Base, rows: Sequence[Row], tokens: int) -> int:
    """Tokens of images and videos that a pass of so many tokens has at most.

    It has most where the rows with the largest shares of them come together, each row once.
    """
    placeholders = {base.config["image_token_id"], base.config["video_token_id"]}
    counted = [(sum(map(row.prompt.count, placeholders)), len(row)) for row in rows]
    visual, room = 0.0, tokens
    for of_row, length in sorted(counted, key=lambda row: row[0] / row[1], reverse=True):
        taken = min(length, room)
        visual += of_row * taken / length
        room -= taken
        if not room:
            break
    return math.ceil(visual)


def kept_by_block(base: Base, recipe: Profile, *, fused: bool) -> int:
    """Bytes a patch that one block of an adapted tower keeps for its backward pass, in bfloat16."""
    block = tower_block(base.architecture, base.config["vision_config"])
    heads = base.config["vision_config"]["num_heads"]
    width, (inner, _) = block["attn.qkv"][0], list(block.values())[-1]
    # liger-kernel has no norm for Qwen3-VL's tower; torch's autocast widens it to float32.
    norms = 2 * (2 if fused and "Qwen3" not in base.architecture else 4) * width
    # Rotated queries and keys, the product that holds the values, output, and the normalizer.
    attention = 2 * (width + width + 3 * width + width) + 4 * heads
    # A gated MLP keeps gate, up and the activated gate; quick GELU its input and the sigmoid.
    gated = {"Qwen2_5_VLForConditionalGeneration": 3, "Qwen2VLForConditionalGeneration": 2}
    activation = 2 * gated.get(base.architecture, 1) * inner
    # The output of attention is kept anyway; gate and up read the same tensor.
    lora = kept_by_adapters(list(block.values()), width + width + inner, recipe)
    return norms + attention + activation + lora
