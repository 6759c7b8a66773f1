"""How much GPU memory a training takes, computed from shapes before the model is loaded.

The activations are counted tensor by tensor as autograd keeps them; `bench/memory.py` compares the
estimate with the peak that torch measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base.architectures import decoder_layer, linears, tower_block
from loraline.base.targets import targets_of
from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.base.encoding import Row
    from loraline.base.locate import Base
    from loraline.profiles import Profile

GIB = 2**30
BUDGETS = (16384, 10240, 6144, 4096, 2048, 1024, 512)
"""Tokens of a forward pass to choose from. On an H200 a 7B base reaches 98 % of its best speed at
8192, 92 % at 2048; more than a step's rows hold is never used."""

SMALL_BUDGET = 10240
"""Tokens of a forward pass that `small` begins with. Recomputed activations of a 7B base take
0.45 GiB a thousand tokens; a second pass takes a fifth of a second, however few its tokens."""

HEADROOM = 0.92
"""Share of the free memory that is planned with; the allocator loses the rest to fragments."""

LOSS = 5 * 2**27
"""Bytes at the peak of one slice of logits: float32 values, their rounded copy and its product."""


@dataclass(frozen=True)
class Plan:
    """How a training spends memory; none of it changes what is learned from which rows."""

    token_budget: int
    """Tokens a forward pass; a longer row gets a pass of its own."""

    checkpointing: bool
    """Recompute activations in the backward pass."""

    dequantized: bool
    """Keep the base's 4-bit weights unpacked."""

    fused: bool
    """Use fused kernels for norms, rotary positions and the gated MLP."""


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a training step, by what they are for."""

    weights: int
    adapter: int
    """The adapter's weights, gradients and both moments of Adam, float32."""

    activations: int
    working: int
    """What exists for a moment on top: a layer in recomputation, a slice of logits."""

    inputs: int
    """Pixels of the pack's images."""

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.working + self.inputs

    def table(self, plan: Plan) -> str:
        """The estimate as lines of text."""
        entries = {
            "base weights": self.weights,
            "adapter and optimizer": self.adapter,
            "activations": self.activations,
            "working memory": self.working,
            "images": self.inputs,
            "peak": self.total,
        }
        checkpointing = "recomputed" if plan.checkpointing else "kept"
        weights = "unpacked" if plan.dequantized else "packed"
        lines = [
            f"memory: {plan.token_budget} tokens a pass, activations {checkpointing}, "
            f"weights {weights}"
        ]
        lines += [f"  {name:22}{size / GIB:7.2f} GiB" for name, size in entries.items()]
        return "\n".join(lines)


CPU = Plan(2048, checkpointing=False, dequantized=False, fused=False)


def free() -> int | None:
    """Bytes that every process of the training could still allocate on its GPU; None without one.

    The fewest of all, so that all have the same plan.
    """
    import torch

    from loraline.training import exchange

    if not torch.cuda.is_available():
        return None
    return exchange.lowest(torch.cuda.mem_get_info()[0], torch.device("cuda"))


def choose(recipe: Profile, base: Base, rows: Sequence[Row], free: int | None) -> tuple[Plan, str]:
    """The plan of the profile's memory mode for a GPU with `free` bytes, and its table.

    `free` of None is a CPU, which is not planned for. Raises UserError, with what would fit, when
    the mode does not.
    """
    if free is None:
        return CPU, f"memory: no GPU, {CPU.token_budget} tokens a pass"
    for plan in candidates(recipe.memory):
        estimated = estimate(recipe, base, rows, plan)
        if estimated.total <= free * HEADROOM:
            return plan, estimated.table(plan)
    raise UserError(refusal(recipe, base, rows, free))


def candidates(mode: str) -> list[Plan]:
    """Plans of a memory mode, the fastest first.

    Keeping activations saves a quarter of the time, unpacked weights a fifteenth; a smaller pass
    costs less than either as long as it has about two thousand tokens.
    """
    fused = has_fused_kernels()
    kept = [
        Plan(budget, checkpointing=False, dequantized=dequantized, fused=fused)
        for dequantized in (True, False)
        for budget in BUDGETS
        if budget >= 2048
    ]
    recomputed = [
        Plan(budget, checkpointing=True, dequantized=False, fused=fused)
        for budget in BUDGETS
        if budget <= SMALL_BUDGET
    ]
    return {"fast": kept, "small": recomputed, "auto": kept + recomputed}[mode]


def refusal(recipe: Profile, base: Base, rows: Sequence[Row], free: int) -> str:
    """Why no plan of the mode fits, and the nearest setting that does."""
    last = candidates(recipe.memory)[-1]
    needed = estimate(recipe, base, rows, last)
    sentence = (
        f"memory: {recipe.memory} needs {needed.total / GIB:.1f} GiB and the GPU has "
        f"{free * HEADROOM / GIB:.1f} GiB to plan with"
    )
    if recipe.memory == "fast":
        small = estimate(recipe, base, rows, candidates("small")[-1])
        if small.total <= free * HEADROOM:
            return f"{sentence}; memory: small needs {small.total / GIB:.1f} GiB"
    longest = max(len(row) for row in rows)
    fixed = needed.weights + needed.adapter + LOSS
    per_token = (needed.total - fixed) / max(longest, last.token_budget)
    fitting = int((free * HEADROOM - fixed) / max(per_token, 1))
    if fitting >= 64 and fitting < longest:
        return f"{sentence}; rows of up to {fitting} tokens fit: set max_length to that"
    return f"{sentence}; the base and its adapter alone take {fixed / GIB:.1f} GiB"


def has_fused_kernels() -> bool:
    """Whether the optional package liger-kernel is installed."""
    from importlib.util import find_spec

    return find_spec("liger_kernel") is not None


def estimate(recipe: Profile, base: Base, rows: Sequence[Row], plan: Plan) -> Estimate:
    """Bytes at the peak of the worst optimizer step that these rows can make."""
    text = base.config.get("text_config") or base.config
    lengths = sorted(map(len, rows), reverse=True)
    tokens = max(lengths[0], min(plan.token_budget, sum(lengths[: recipe.rows_per_step])))
    layers = text["num_hidden_layers"]
    kept = kept_by_layer(text, recipe, fused=plan.fused)
    width = text["hidden_size"]
    tower, tower_again = tower_activations(recipe, base, rows, tokens, plan)
    if plan.checkpointing:
        # Each layer's input is kept; one layer at a time is run again, with the gradients of its
        # widest tensors and its unpacked weights beside it. The tower's turn comes last, when the
        # language model's have gone.
        activations = tokens * layers * 2 * width
        again = tokens * (kept + 4 * text["intermediate_size"] + 2 * width)
        working = max(again + unpacked_layer(text), LOSS, tower_again - activations)
    else:
        activations = tokens * layers * kept
        working = max(unpacked_layer(text), LOSS // 2)
    activations += tower
    copies, dora = dora_weights(recipe, base)
    activations += 0 if plan.checkpointing else copies
    working += dora + (copies // layers if plan.checkpointing else 0)
    inputs = 0
    if recipe.modality == "vision":
        vision = base.config["vision_config"]
        merged = vision.get("spatial_merge_size", 2) ** 2
        patch = 3 * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2
        inputs = tokens * merged * patch * 4
    return Estimate(
        weights=weight_bytes(base.path, plan, quantized=recipe.quantization == "nf4"),
        adapter=16 * adapter_parameters(recipe, base),
        activations=activations,
        working=working,
        inputs=inputs,
    )


def kept_by_layer(text: Mapping[str, Any], recipe: Profile, *, fused: bool) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass, in bfloat16."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    heads, kv = text["num_attention_heads"], text["num_key_value_heads"]
    head = text.get("head_dim") or width // heads
    queries, keys = heads * head, kv * head
    norms = 2 * 2 * width
    if "Qwen3" in str(text.get("model_type", "")).title():
        norms += 2 * (queries + keys)
    # Queries, keys, values, output, and the softmax's normalizer in float32.
    attention = 2 * (2 * queries + 2 * keys) + 4 * heads
    gated = 2 * 2 * inner
    if not fused:
        # Norms widen to float32 and keep the normalized input too; the activation keeps its result.
        norms += 2 * 6 * width
        gated += 2 * inner
    read = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention")
    read |= {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "gated"}
    sizes = {name.rpartition(".")[2]: size for name, size in decoder_layer(text).items()}
    adapted = {name: sizes[name] for name in recipe.projections}
    # Layers that read the same tensor keep it once; attention keeps its output anyway.
    once = {read[name]: size for name, (size, _) in adapted.items() if name in read}
    lora = kept_by_adapters(list(adapted.values()), sum(once.values()), recipe)
    return norms + attention + gated + lora


def kept_by_adapters(sizes: Sequence[tuple[int, int]], once: int, recipe: Profile) -> int:
    """Bytes a token that the adapters of layers of these sizes keep for the backward pass.

    `once` is the size of the tensors that they read, each of them counted once.
    """
    low = 2 * recipe.r * len(sizes)
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
    recipe: Profile, base: Base, rows: Sequence[Row], tokens: int, plan: Plan
) -> tuple[int, int]:
    """Bytes that an adapted tower keeps for its backward pass, and those of one block run again.

    A frozen tower keeps nothing; behind an adapted merger alone, only the mergers do.
    """
    if not recipe.trains_vision:
        return 0, 0
    vision = base.config["vision_config"]
    image = base.config["image_token_id"]
    share = max(row.prompt.count(image) / len(row) for row in rows)
    patches = math.ceil(tokens * share) * vision.get("spatial_merge_size", 2) ** 2
    block = tower_block(base.architecture, vision)
    width, (inner, _) = block["attn.qkv"][0], list(block.values())[-1]
    mergers = 1 + len(vision.get("deepstack_visual_indexes", []))
    # A float32 norm, the activation's input, and the inputs of two adapted layers.
    kept = mergers * patches * (4 + 2 + 2 * (3 if recipe.lora_dropout else 2)) * width
    if not recipe.trains_tower:
        return kept, 0
    of_block = kept_by_block(base, recipe, fused=plan.fused)
    if plan.checkpointing:
        again = patches * (of_block + 4 * inner + 2 * width)
        return kept + patches * vision["depth"] * 2 * width, again
    return kept + patches * vision["depth"] * of_block, 0


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


def dora_weights(recipe: Profile, base: Base) -> tuple[int, int]:
    """Bytes of weights that PEFT's DoRA keeps for the backward pass, and has for a moment.

    With dropout it multiplies by the base's weights anew, and autograd keeps its copy of them. The
    norm of base and update is computed from both in float32, the update as the product of the
    adapter and an identity matrix.
    """
    if not recipe.use_dora:
        return 0, 0
    sizes = adapted_sizes(recipe, base)
    kept = sum(2 * inputs * outputs for inputs, outputs in sizes) if recipe.lora_dropout else 0
    # Of the identity and of the update a rounded copy too; base, update, both scaled, added.
    return kept, max(6 * inputs**2 + 22 * inputs * outputs for inputs, outputs in sizes)


def unpacked_layer(text: Mapping[str, Any]) -> int:
    """Bytes of the largest weight of a decoder layer, as a product needs it."""
    return 2 * int(text["hidden_size"]) * int(text["intermediate_size"])


def adapter_parameters(recipe: Profile, base: Base) -> int:
    """Parameters of the adapter: rank times inputs and outputs of every adapted layer."""
    sizes = adapted_sizes(recipe, base)
    magnitudes = sum(outputs for _, outputs in sizes) if recipe.use_dora else 0
    return recipe.r * sum(inputs + outputs for inputs, outputs in sizes) + magnitudes


def adapted_sizes(recipe: Profile, base: Base) -> list[tuple[int, int]]:
    """Input and output size of every layer that the profile adapts."""
    adapted = re.compile(targets_of(recipe))
    return [size for name, size in linears(base.config).items() if adapted.fullmatch(name)]


def weight_bytes(folder: Path, plan: Plan, *, quantized: bool = True) -> int:
    """Bytes of the base's weights once loaded, from the headers of its files.

    Projections of the language model take four bits a weight and, after double quantization, 0.127
    bits for its scales (QLoRA, arXiv 2305.14314, section 3); the rest is bfloat16.
    """
    from safetensors import safe_open

    from loraline.base.locate import weight_files

    total = 0.0
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                count = math.prod(weights.get_slice(name).get_shape())
                projection = name.endswith("_proj.weight") and "visual" not in name
                four_bit = projection and quantized and not plan.dequantized
                total += count * (4.127 / 8 if four_bit else 2)
    return int(total)
