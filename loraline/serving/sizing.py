"""Whether a server fits its card, and the arguments with which it does; all from configs.

Per card, in bytes: weights + adapter slots + activations + cache of the longest request must stay
below `--gpu-memory-utilization` of the memory. The first two and the cache follow from the base's
`config.json`; activations are what vLLM finds by a trial run at start-up, estimated here until a
log of a real server says better (`calibrate`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loraline.base.architectures import (
    VISION,
    head_dim,
    kv_heads,
    linears,
    parameters,
    positions,
    text_config,
)
from loraline.errors import UserError
from loraline.serving.cards import GPUS

GIB = 2**30
BLOCK = 16
"""Tokens in a block of vLLM's cache."""

UTILIZATION = 0.9
"""Share of a card that vLLM may plan with; its own default moved between 0.9 and 0.92."""


DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight in bitsandbytes' NF4 with double quantization: 4 bits, a byte a block of 64, and
4 bytes a 256 blocks (Dettmers et al., QLoRA, 2023, section 3)."""

TEXT_ACTIVATION, TEXT_BATCH = 2.5, 2048
LARGE_ACTIVATION, LARGE_BATCH = 5.6, 8192
"""GiB of activations, CUDA graphs and context at two values of --max-num-batched-tokens. The second
is llm-d-planner's constant for dense Qwen models at vLLM's defaults for large cards."""

VIDEO_ACTIVATION = 7.7
"""The same for Qwen-VL with images and videos of any size: what two starts of Qwen3-VL-8B
on a 32 GB card agree on, at a utilization of 0.9 and of 0.7."""

UNLIMITED_PIXELS = 16384 * 32 * 32
"""Pixels of Qwen-VL's largest image by default, 16384 tokens."""


@dataclass(frozen=True)
class Demand:
    """What to serve, as far as memory is concerned."""

    config: Mapping[str, Any]
    """The base's config.json."""

    dtype: str
    max_model_len: int
    quantization: str = "none"
    """What linear layers are rounded to as they are loaded: `fp8`, or nothing."""

    max_lora_rank: int = 0
    """Zero serves without adapters."""

    max_loras: int = 1
    tower: bool = False
    """Whether tower and merger get adapter slots too."""

    max_pixels: int | None = None
    """Pixels of the largest image; None means a vision base's default, with video."""

    max_num_batched_tokens: int = TEXT_BATCH
    activation: float | None = None
    """GiB learned from a log; None means an estimate."""


@dataclass(frozen=True)
class Plan:
    """Arguments that fit, with the terms that a reviewer can check; all sizes in GiB a card."""

    gpu: str
    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    weights: float
    lora: float
    activation: float
    available: float
    """GiB for the cache; negative if the rest alone exceeds the card."""

    needed: float
    """GiB of cache for one request of the longest length."""

    largest_len: int
    """Longest request that would fit, in tokens."""

    @property
    def fits(self) -> bool:
        return self.available >= self.needed

    def account(self) -> str:
        """The terms in one line."""
        memory = GPUS[self.gpu].memory
        return (
            f"{memory:.2f} GiB x {self.gpu_memory_utilization:g} = "
            f"{memory * self.gpu_memory_utilization:.2f}: weights {self.weights:.2f}, adapters "
            f"{self.lora:.2f}, activations {self.activation:.2f}, cache {self.available:.2f} "
            f"of which {self.max_model_len} tokens need {self.needed:.2f}"
        )


def plan(demand: Demand, gpu: str, *, cards: int = 1, fraction: float = 1.0) -> Plan:
    """The fewest cards of a kind, up to `cards`, on which the demand fits, and the arguments.

    `fraction` is the share of one card that the server may take. Raises UserError with the numbers
    when it fits on none, or when the card cannot compute in the dtype.
    """
    if not 0 < fraction <= 1 or (fraction < 1 and cards > 1):
        raise UserError(f"a fraction of a card is above 0 and up to 1, of one card; got {fraction}")
    if demand.dtype == "bfloat16" and not GPUS[gpu].bfloat16:
        raise UserError(f"{gpu} cannot compute in bfloat16; set serve_dtype: float16")
    if demand.quantization == "fp8" and not GPUS[gpu].fp8:
        able = ", ".join(name for name, card in GPUS.items() if card.fp8)
        raise UserError(f"{gpu} cannot multiply in FP8, as the adapter was trained; use {able}")
    check_length(demand.max_model_len, demand.config)
    candidates = [
        sized(demand, gpu, size, fraction) for size in splits(demand.config) if size <= cards
    ]
    for candidate in candidates:
        if candidate.fits:
            return candidate
    best = max(candidates, key=lambda candidate: candidate.largest_len)
    raise UserError(
        f"{demand_in_words(demand)} does not fit {plan_in_words(best, fraction)}; {remedy(best)}"
    )


def smallest(demand: Demand, learned: Mapping[str, float]) -> Plan:
    """The plan on the smallest single card that the demand fits; a UserError if there is none.

    `learned` has the activations in GiB that a log taught, by card.
    """
    reason = UserError("no card is known")
    for gpu in GPUS:
        try:
            return plan(replace(demand, activation=learned.get(gpu)), gpu)
        except UserError as error:
            reason = error
    raise reason


def sized(demand: Demand, gpu: str, cards: int, fraction: float = 1.0) -> Plan:
    """The estimate for `cards` cards that share the layers, whether it fits or not."""
    utilization = round(UTILIZATION * fraction, 3)
    weights = weight_bytes(demand.config, demand.dtype, demand.quantization) / cards / GIB
    lora = lora_bytes(demand, cards) / GIB
    activation = demand.activation or activation_gib(demand)
    available = GPUS[gpu].memory * utilization - weights - lora - activation
    token = kv_bytes(demand.config, demand.dtype, cards)
    needed = cache_tokens(demand, demand.max_model_len) * token / GIB
    largest = max(0, math.floor(available * GIB / token / BLOCK) * BLOCK)
    if (window := sliding_window(demand.config)) and available * GIB >= window * token:
        # Past the window a request needs no more.
        room = cache_tokens(demand, 2**31) * token / GIB
        largest = (positions(demand.config) or 2**31) if available >= room else largest
    return Plan(
        gpu=gpu,
        tensor_parallel_size=cards,
        gpu_memory_utilization=utilization,
        max_model_len=demand.max_model_len,
        max_num_seqs=concurrency(available / needed),
        max_num_batched_tokens=demand.max_num_batched_tokens,
        weights=weights,
        lora=lora,
        activation=activation,
        available=available,
        needed=needed,
        largest_len=min(largest, positions(demand.config) or 2**31),
    )


def concurrency(requests: float) -> int:
    """--max-num-seqs, from 1 to 64, for a cache that holds `requests` of the longest length.

    Twice as many from four on, since most are shorter; vLLM makes one wait when all are long.
    """
    return max(1, min(64, 8 * math.floor(requests / 4) if requests >= 4 else math.floor(requests)))


def check_length(max_model_len: int, config: Mapping[str, Any]) -> None:
    """Raise a UserError where rows with their answers are longer than the base allows."""
    most = positions(config)
    if most is not None and max_model_len > most:
        raise UserError(
            f"rows of up to {max_model_len} tokens are longer than the base's "
            f"{most} positions, which vLLM refuses; lower max_length or max_new_tokens"
        )


def splits(config: Mapping[str, Any]) -> list[int]:
    """Numbers of cards over which the attention heads divide evenly."""
    text = text_config(config)
    heads, values = text["num_attention_heads"], kv_heads(text)
    return [n for n in (1, 2, 4, 8) if heads % n == 0 and (values % n == 0 or n % values == 0)]


def plan_in_words(plan: Plan, fraction: float) -> str:
    cards = f"{plan.tensor_parallel_size} x " if plan.tensor_parallel_size > 1 else ""
    share = f"{fraction:g} of one " if fraction < 1 else ""
    return f"{cards}{share}{plan.gpu} ({plan.account()})"


def demand_in_words(demand: Demand) -> str:
    architecture = demand.config["architectures"][0]
    return f"{architecture} in {demand.dtype} with {demand.max_model_len} tokens"


def remedy(plan: Plan) -> str:
    if plan.largest_len >= 256:
        return f"the largest length that fits is {plan.largest_len} tokens"
    return "no length fits: choose a larger card, more cards or a quantized base"


def kv_bytes(config: Mapping[str, Any], dtype: str, cards: int = 1) -> int:
    """Cache of one token on one card: keys and values of all layers, at least one head each."""
    text = text_config(config)
    heads = max(1, kv_heads(text) // cards)
    return 2 * int(text["num_hidden_layers"]) * heads * head_dim(text) * DTYPE_BYTES[dtype]


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """The window if all layers have one; Qwen's configs name a window that is switched off."""
    text = text_config(config)
    if text.get("use_sliding_window") is False:
        return None
    return (
        text.get("sliding_window") if config["architectures"][0] == "MistralForCausalLM" else None
    )


def cache_tokens(demand: Demand, length: int) -> int:
    """Tokens whose cache a request of `length` tokens holds at most, in whole blocks.

    A sliding window keeps itself and the tokens of two steps in flight (vLLM's SlidingWindowSpec).
    """
    window = sliding_window(demand.config)
    if window is None:
        return math.ceil(length / BLOCK) * BLOCK
    cached = min(length, window - 1 + 2 * demand.max_num_batched_tokens)
    return (math.ceil(cached / BLOCK) + 1) * BLOCK


def lora_bytes(demand: Demand, cards: int = 1) -> int:
    """Adapter slots on one card: A of (rank, in) and B of (out, rank) for each linear layer.

    They are allocated at the full rank for every layer that could carry an adapter. Over several
    cards the inputs of o_proj and down_proj are split, and the outputs of all others.
    """
    features = 0
    for name, (inputs, outputs) in linears(demand.config).items():
        if ".visual." in f".{name}":
            features += inputs + outputs if demand.tower else 0
        elif name.endswith(("o_proj", "down_proj")):
            features += inputs // cards + outputs
        else:
            features += inputs + outputs // cards
    return demand.max_loras * demand.max_lora_rank * features * DTYPE_BYTES[demand.dtype]


def activation_gib(demand: Demand) -> float:
    """An estimate of what vLLM's trial run finds: grows with the step and with the image."""
    step = (demand.max_num_batched_tokens - TEXT_BATCH) / (LARGE_BATCH - TEXT_BATCH)
    text = TEXT_ACTIVATION + (LARGE_ACTIVATION - TEXT_ACTIVATION) * min(1.0, max(0.0, step))
    share = min(1.0, largest_pixels(demand) / UNLIMITED_PIXELS)
    return max(text, TEXT_ACTIVATION + (VIDEO_ACTIVATION - TEXT_ACTIVATION) * share)


def largest_pixels(demand: Demand) -> int:
    """Pixels of the largest image that a server takes; 0 for a text base."""
    if demand.config["architectures"][0] not in VISION:
        return 0
    return UNLIMITED_PIXELS if demand.max_pixels is None else demand.max_pixels


def calibrate(
    log: str, demand: Demand, gpu: str, *, cards: int = 1, fraction: float = 1.0
) -> float:
    """GiB of activations from the log of a server with this demand on this card.

    Raises UserError when the log lacks vLLM's line on the cache.
    """
    cache = re.search(r"Available KV cache memory: (-?[\d.]+) GiB", log)
    if cache is None:
        raise UserError("the log has no line 'Available KV cache memory: ... GiB' of vLLM")
    loaded = re.search(r"Model loading took ([\d.]+) GiB", log)
    used = re.search(r"gpu_memory_utilization['\"]?[:=] ?([\d.]+)", log)
    utilization = float(used[1]) if used else UTILIZATION * fraction
    estimate = sized(demand, gpu, cards, fraction)
    # Adapter slots are part of what vLLM counts as loaded.
    weights = float(loaded[1]) if loaded else estimate.weights + estimate.lora
    overhead = GPUS[gpu].memory * utilization - weights - float(cache[1])
    if overhead <= 0:
        raise UserError(
            f"the log says {cache[1]} GiB for the cache, more than {gpu} would have left; "
            "is it of another card?"
        )
    return round(overhead, 2)


def weight_bytes(config: Mapping[str, Any], dtype: str, quantization: str = "none") -> float:
    """Bytes of the base's loaded weights; a quantized base says so in its config."""
    counted = parameters(config)
    linear = 1.0 if quantization == "fp8" else bytes_per_weight(config, dtype)
    return counted.linear * linear + counted.rest * DTYPE_BYTES[dtype]


def bytes_per_weight(config: Mapping[str, Any], dtype: str) -> float:
    """Of a linear layer's weight: with GPTQ and AWQ a scale of 2 bytes and a zero point a group."""
    quantized = config.get("quantization_config")
    if not quantized:
        return DTYPE_BYTES[dtype]
    method = quantized.get("quant_method")
    if method in ("gptq", "awq"):
        bits, group = int(quantized["bits"]), int(quantized.get("group_size") or 128)
        # Without groups a column has one scale, which counts for nothing.
        return bits / 8 + ((2 + bits / 8) / group if group > 0 else 0)
    if method == "bitsandbytes":
        return NF4_BYTES if quantized.get("load_in_4bit") else 1.0
    raise UserError(f"quantization {method!r} of the base has no size here; use gptq or awq")
