"""How much GPU memory a training takes, computed from shapes before the model is loaded.

`bench/memory.py` compares the estimate with the peak that torch measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base import architectures
from loraline.base.architectures import linears
from loraline.base.targets import targets_of
from loraline.errors import UserError
from loraline.training.activations import kept_by_layer, tower_activations
from loraline.training.gathering import layers_gathered, learned_parameters, other_weights_gathered
from loraline.training.machine import HEADROOM, Machine

if TYPE_CHECKING:
    from loraline.base.encoding import Row
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile

GIB = 2**30
BUDGETS = (16384, 10240, 6144, 4096, 2048, 1024, 512)
"""Tokens of a forward pass to choose from. On an H200 a 7B base reaches 98 % of its best speed at
8192, 92 % at 2048; more than a step's rows hold is never used."""

SMALL_BUDGET = 10240
"""Tokens of a forward pass that `small` begins with. Recomputed activations of a 7B base take
0.45 GiB a thousand tokens; a second pass takes a fifth of a second, however few its tokens."""

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
    """Keep the base's quantized weights as products read them: those of 4 bits unpacked, those in
    FP8 transposed as well."""

    fused: bool
    """Use fused kernels for norms, rotary positions and the gated MLP."""

    sharded: bool = False
    """Share out the weights over the processes, and gather a layer's when it computes."""

    offloaded: bool = False
    """Keep what is shared out in the host's memory."""

    @property
    def weights(self) -> str:
        """The form or place of the weights, as the table of the estimate prints it."""
        if self.offloaded:
            return "in host memory"
        unpacked = "unpacked" if self.dequantized else "packed"
        return "shared out" if self.sharded else unpacked


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a training step in one process, by what they are for."""

    weights: int
    """Weights that are there from step to step."""

    learning: int
    """Gradients and both moments of Adam, float32, and an adapter's weights."""

    activations: int
    working: int
    """What exists for a moment on top: a layer in recomputation, a slice of logits."""

    inputs: int
    """Pixels of the pack's images."""

    gathered: int = 0
    """With sharded weights: layers gathered to compute, and their gradients before reduction."""

    host: int = 0
    """In the host's memory, all processes together."""

    @property
    def total(self) -> int:
        """On the GPU."""
        kept = self.weights + self.learning + self.activations
        return kept + self.working + self.inputs + self.gathered

    def table(self, plan: Plan) -> str:
        """The estimate as lines of text."""
        entries = {
            "weights": self.weights,
            "what learns": self.learning,
            "gathered layers": self.gathered,
            "activations": self.activations,
            "working memory": self.working,
            "images": self.inputs,
            "peak": self.total,
            "host memory": self.host,
        }
        checkpointing = "recomputed" if plan.checkpointing else "kept"
        lines = [
            f"memory: {plan.token_budget} tokens a pass, activations {checkpointing}, "
            f"weights {plan.weights}"
        ]
        listed = {name: size for name, size in entries.items() if size or name == "images"}
        lines += [f"  {name:22}{size / GIB:7.2f} GiB" for name, size in listed.items()]
        return "\n".join(lines)


CPU = Plan(2048, checkpointing=False, dequantized=False, fused=False)


def choose(
    recipe: Profile, base: Base, rows: Sequence[Row], machine: Machine | None
) -> tuple[Plan, str]:
    """The plan of the profile's memory mode for a machine, and its table.

    `machine` of None is a CPU, which is not planned for. Raises UserError, with what would fit,
    when the mode does not.
    """
    if machine is None:
        plan = replace(CPU, sharded=recipe.train == "full")
        return plan, f"memory: no GPU, {CPU.token_budget} tokens a pass"
    for plan in candidate_plans(recipe, machine.cards):
        estimated = estimate(recipe, base, rows, plan, machine.cards)
        if machine.fits(estimated.total, estimated.host):
            return plan, estimated.table(plan)
    raise UserError(refusal(recipe, base, rows, machine))


def candidate_plans(recipe: Profile, cards: int = 1) -> list[Plan]:
    """Plans of a profile's memory mode, the fastest first.

    Keeping activations saves a quarter of the time, unpacked weights a fifteenth; a smaller pass
    costs less than either as long as it has about two thousand tokens. Weights are shared out only
    where they do not fit, and wait in the host's memory as the last resort: each pass moves them.
    Weights that learn are always shared out, if only over one card: in float32 they are too large
    to compute with.
    """
    plans = (
        {True: [], False: []}
        if recipe.train == "full"
        else {
            True: recomputing_activations(),
            False: [
                *keeping_activations(dequantized=True),
                *keeping_activations(dequantized=False),
            ],
        }
    )
    if is_sharded(recipe) and (cards > 1 or recipe.train == "full"):
        plans[False] += [
            replace(plan, sharded=True) for plan in keeping_activations(dequantized=False)
        ]
        plans[True] += [replace(plan, sharded=True) for plan in recomputing_activations()]
    if is_sharded(recipe) and recipe.quantization == "none":
        plans[True] += [
            replace(plan, sharded=True, offloaded=True) for plan in recomputing_activations()
        ]
    modes = {"fast": (False,), "small": (True,), "auto": (False, True)}
    ordered = [plan for checkpointing in modes[recipe.memory] for plan in plans[checkpointing]]
    # Sharing out is slower than recomputing, and what waits in host memory slower than either.
    return sorted(ordered, key=lambda plan: (plan.offloaded, plan.sharded))


def is_sharded(recipe: Profile) -> bool:
    """Whether a training can share out its weights: DoRA and PiSSA look at them as a whole, and
    those in FP8 are read by a product that knows nothing of parts."""
    needs_whole_weights = (
        recipe.use_dora or recipe.init_lora_weights or recipe.quantization == "fp8"
    )
    return not needs_whole_weights


def keeping_activations(*, dequantized: bool) -> list[Plan]:
    """Plans that keep activations."""
    budgets = [budget for budget in BUDGETS if budget >= 2048]
    return [Plan(b, False, dequantized, has_fused_kernels()) for b in budgets]


def recomputing_activations() -> list[Plan]:
    """Plans that compute activations again."""
    budgets = [budget for budget in BUDGETS if budget <= SMALL_BUDGET]
    return [Plan(b, True, False, has_fused_kernels()) for b in budgets]


def refusal(recipe: Profile, base: Base, rows: Sequence[Row], machine: Machine) -> str:
    """Why no plan of the mode fits, and the nearest setting that does."""
    room = machine.free * HEADROOM
    smallest = candidate_plans(recipe, machine.cards)[-1]
    needed = estimate(recipe, base, rows, smallest, machine.cards)
    sentence = (
        f"memory: {recipe.memory} needs {needed.total / GIB:.1f} GiB and the GPU has "
        f"{room / GIB:.1f} GiB to plan with"
    )
    if recipe.memory == "fast":
        small = recipe.model_copy(update={"memory": "small"})
        least = candidate_plans(small, machine.cards)[-1]
        less = estimate(recipe, base, rows, least, machine.cards)
        if machine.fits(less.total, less.host):
            return f"{sentence}; memory: small needs {less.total / GIB:.1f} GiB"
    if needed.host > machine.host * HEADROOM:
        on_cards = estimate(recipe, base, rows, replace(smallest, offloaded=False), machine.cards)
        return (
            f"the training needs {on_cards.total / GIB:.1f} GiB of a GPU that has "
            f"{room / GIB:.1f} GiB to plan with, or {needed.host / GIB:.1f} GiB of host memory of "
            f"which {machine.host * HEADROOM / GIB:.1f} are there; train on more GPUs, or an "
            "adapter"
        )
    longest = max(len(row) for row in rows)
    fixed = needed.weights + needed.learning + needed.gathered + LOSS
    per_token = (needed.total - fixed) / max(longest, smallest.token_budget)
    fitting = int((room - fixed) / max(per_token, 1))
    if fitting >= 64 and fitting < longest:
        return f"{sentence}; rows of up to {fitting} tokens fit: set max_length to that"
    trained = "the weights" if recipe.train == "full" else "the base and its adapter"
    return f"{sentence}; {trained} alone take {fixed / GIB:.1f} GiB"


def has_fused_kernels() -> bool:
    """Whether the optional package liger-kernel is installed."""
    from importlib.util import find_spec

    return find_spec("liger_kernel") is not None


def estimate(
    recipe: Profile, base: Base, rows: Sequence[Row], plan: Plan, cards: int = 1
) -> Estimate:
    """Bytes at the peak of the worst optimizer step that these rows can make, in one process."""
    text = architectures.text_config(base.config)
    lengths = sorted(map(len, rows), reverse=True)
    step = sum(lengths[: recipe.rows_per_step])
    # Rows go to the card with the fewest tokens: none has more than a row beyond its part.
    share = min(step, -(-step // cards) + lengths[0])
    tokens = max(lengths[0], min(plan.token_budget, share))
    layers = text["num_hidden_layers"]
    bytes_a_token = kept_by_layer(base, recipe, fused=plan.fused)
    width = text["hidden_size"]
    fixed = independent_of_rows(recipe, base, plan, cards)
    # While logits are there, no layer is gathered.
    logits = LOSS - layers_gathered(recipe, base, cards) if plan.sharded else LOSS
    tower, tower_again = tower_activations(
        recipe, base, rows, tokens, checkpointing=plan.checkpointing, fused=plan.fused
    )
    copies, dora = dora_weights(recipe, base)
    # A layer is multiplied, and its magnitudes computed, while no logits are there.
    product = product_bytes(recipe, text, plan, tokens) + dora
    if plan.checkpointing:
        # Each layer's input is kept; one layer at a time is run again, with the gradients of its
        # widest tensors and its unpacked weights beside it. The tower's turn comes last, when the
        # language model's have gone.
        activations = tokens * layers * 2 * width
        recomputed = tokens * (bytes_a_token + 4 * text["intermediate_size"] + 2 * width)
        of_a_layer = copies // layers
        working = max(
            recomputed + of_a_layer + product, logits, tower_again + of_a_layer + dora - activations
        )
    else:
        activations = tokens * layers * bytes_a_token + copies
        working = max(product, logits - LOSS // 2)
    activations += tower
    inputs = 0
    if recipe.modality == "vision":
        vision = base.config["vision_config"]
        merged = vision.get("spatial_merge_size", 2) ** 2
        patch = 3 * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2
        inputs = tokens * merged * patch * 4
    return replace(fixed, activations=activations, working=working, inputs=inputs)


def independent_of_rows(recipe: Profile, base: Base, plan: Plan, cards: int) -> Estimate:
    """Bytes that do not depend on the rows: weights, and what follows them where they learn."""
    if recipe.train == "full":
        learned, frozen = learned_parameters(recipe, base)
        # Weights that learn are kept in float32.
        weights, learning = 4 * learned + 2 * frozen, 12 * learned
    else:
        weights = weight_bytes(base.path, plan, recipe.quantization)
        learning = 16 * adapter_parameters(recipe, base)
    if not plan.sharded:
        return Estimate(weights, learning, activations=0, working=0, inputs=0)
    gathered = layers_gathered(recipe, base, cards) + other_weights_gathered(recipe, base)
    if plan.offloaded:
        # The base is read by each process before it keeps its part.
        read = 2 * sum(architectures.parameters(base.config)) * cards
        host = max(weights + learning, read + weights)
        return Estimate(0, 0, activations=0, working=0, inputs=0, gathered=gathered, host=host)
    parts = (-(-weights // cards), -(-learning // cards))
    return Estimate(*parts, activations=0, working=0, inputs=0, gathered=gathered)


def dora_weights(recipe: Profile, base: Base) -> tuple[int, int]:
    """Bytes of weights that PEFT's DoRA keeps for the backward pass, and has for a moment.

    With dropout it multiplies by the base's weights anew, and autograd keeps its copy of them. The
    norm of base and update is computed from both in float32, the update as the product of the
    adapter and an identity matrix.
    """
    if not recipe.use_dora:
        return 0, 0
    sizes = adapted_sizes(recipe, base)
    copies = sum(2 * inputs * outputs for inputs, outputs in sizes) if recipe.lora_dropout else 0
    # Of the identity and of the update a rounded copy too; base, update, both scaled, added.
    return copies, max(6 * inputs**2 + 22 * inputs * outputs for inputs, outputs in sizes)


def product_bytes(recipe: Profile, text: Mapping[str, Any], plan: Plan, tokens: int) -> int:
    """Bytes that the widest product of a decoder layer has for a moment: its weight unpacked, or
    in FP8 its rounded operand, and the weight transposed where no such copy is kept. Weights in 16
    bits are read as they are."""
    inner = int(text["intermediate_size"])
    weight = int(text["hidden_size"]) * inner
    if recipe.quantization == "fp8":
        return tokens * inner + (0 if plan.dequantized else weight)
    return 2 * weight if recipe.quantization == "nf4" else 0


def adapter_parameters(recipe: Profile, base: Base) -> int:
    """Parameters of the adapter: rank times inputs and outputs of every adapted layer."""
    sizes = adapted_sizes(recipe, base)
    magnitudes = sum(outputs for _, outputs in sizes) if recipe.use_dora else 0
    return recipe.rank * sum(inputs + outputs for inputs, outputs in sizes) + magnitudes


def adapted_sizes(recipe: Profile, base: Base) -> list[tuple[int, int]]:
    """Input and output size of every layer that the profile adapts."""
    adapted = re.compile(targets_of(recipe))
    return [size for name, size in linears(base.config).items() if adapted.fullmatch(name)]


def weight_bytes(folder: Path, plan: Plan, quantization: str = "nf4") -> int:
    """Bytes of the base's weights once loaded, from the headers of its files.

    In NF4, projections of the language model take four bits a weight and, after double
    quantization, 0.127 bits for its scales (QLoRA, arXiv 2305.14314, section 3); in FP8 eight, for
    each layout that is kept. The packed words of a GPTQ base stay as they are, and the rest is in
    16 bits.
    """
    unpacked = 2.0  # In FP8 that is two layouts.
    packed = {"nf4": 4.127 / 8, "fp8": 1.0}.get(quantization, unpacked)
    from safetensors import safe_open

    from loraline.base.locate import weight_files

    total = 0.0
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                stored = weights.get_slice(name)
                count = math.prod(stored.get_shape())
                projection = name.endswith("_proj.weight") and "visual" not in name
                bytes_unpacked = 4.0 if stored.get_dtype() == "I32" else unpacked
                total += count * (packed if projection and not plan.dequantized else bytes_unpacked)
    return int(total)
