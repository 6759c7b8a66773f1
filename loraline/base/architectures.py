"""A base's layers, heads and parameters, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Parameters(NamedTuple):
    """A base's weights by what happens to them when the base is quantized."""

    linear: int
    """Weights of the language model's linear layers, which a quantized base stores in few bits."""

    rest: int
    """Embeddings, head, norms, biases and the vision tower."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("text_config") or config


def positions(config: Mapping[str, Any]) -> int | None:
    """Positions that a base has, if its config says so: the longest row with its answer."""
    most = text_config(config).get("max_position_embeddings")
    return None if most is None else int(most)


def kv_heads(text: Mapping[str, Any]) -> int:
    return int(text.get("num_key_value_heads") or text["num_attention_heads"])


def head_dim(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def parameters(config: Mapping[str, Any]) -> Parameters:
    """Weights of a known architecture, exactly, from its config.json alone."""
    text = text_config(config)
    hidden, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
    layers = int(text["num_hidden_layers"])
    layer = decoder_layer(text)
    linear = layers * sum(inputs * outputs for inputs, outputs in layer.values())
    architecture = config["architectures"][0]
    # What Gemma's config says nothing of is tied.
    tied_by_default = architecture.startswith("Gemma")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", tied_by_default))
    rest = vocabulary * hidden * (1 if tied else 2) + hidden
    rest += layers * (norms(architecture) * hidden + attention_extras(architecture, layer, text))
    if architecture in VISION:
        rest += vision_parameters(config)
    return Parameters(linear, rest)


def norms(architecture: str) -> int:
    """Norms of a layer as wide as the model: Gemma has one before and one after each part."""
    return 4 if architecture.startswith("Gemma3") else 2


def attention_extras(
    architecture: str, layer: Mapping[str, tuple[int, int]], text: Mapping[str, Any]
) -> int:
    """Biases (Qwen2) or norms (Qwen3, Gemma 3) of queries, keys and values in one layer."""
    if architecture.startswith("Qwen2"):
        return sum(layer[f"self_attn.{name}_proj"][1] for name in "qkv")
    return 2 * head_dim(text) if architecture.startswith(("Qwen3", "Gemma3")) else 0


def vision_parameters(config: Mapping[str, Any]) -> int:
    """The tower and its mergers: linear layers with biases, norms, and the patch embedding."""
    architecture, vision = config["architectures"][0], config["vision_config"]
    tower = {name: size for name, size in linears(config).items() if ".visual." in f".{name}"}
    total = sum((inputs + 1) * outputs for inputs, outputs in tower.values())
    width = tower["model.visual.blocks.0.attn.qkv"][0]
    channels = vision.get("in_channels") or vision.get("in_chans") or 3
    patch = channels * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2
    total += patch * width
    if architecture == "Qwen2_5_VLForConditionalGeneration":
        # RMS norms have no bias.
        return int(total + vision["depth"] * 2 * width + width)
    total += vision["depth"] * 4 * width + 2 * width
    if architecture == "Qwen3VLForConditionalGeneration":
        merged = width * vision.get("spatial_merge_size", 2) ** 2
        total += width + vision["num_position_embeddings"] * width
        total += len(vision["deepstack_visual_indexes"]) * 2 * merged
    return int(total)


TEXT = {
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
}
VISION = {
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
}

MODELS = {
    "Gemma3ForCausalLM": "Gemma 3, text: 270M and 1B",
    "LlamaForCausalLM": "Llama 2 and 3, and what is shaped as they are",
    "MistralForCausalLM": "Mistral 7B, Ministral",
    "Phi3ForCausalLM": "Phi-4, and Phi-3 for 4,000 tokens",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3, dense",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2.5-VL",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL, dense",
}
"""Models of each class that can be trained."""

NOT_TRAINED = {
    "Gemma3ForConditionalGeneration": "Gemma 3 with images: not tried",
    "InternVLForConditionalGeneration": "InternVL: not tried",
    "Llama4ForConditionalGeneration": "Llama 4: not tried",
    "MixtralForCausalLM": "Mixtral: vLLM's kernels for experts were not tried",
    "Phi4MultimodalForCausalLM": "Phi-4-multimodal: not tried",
    "Qwen3MoeForCausalLM": "Qwen3-MoE: vLLM's kernels for experts were not tried",
    "SmolVLMForConditionalGeneration": "SmolVLM: not tried",
}
"""Classes that people ask for and that cannot be trained, and why."""

SERVED = {
    **dict.fromkeys(TEXT | VISION, False),
    "LlamaForCausalLM": True,
    "Qwen3ForCausalLM": True,
    "Qwen3VLForConditionalGeneration": True,
    "Phi3ForCausalLM": True,
}
"""Architectures whose adapters vLLM was seen to apply, and whether it applies them on the head and
the embeddings too (classes with `embedding_modules`); asked of 0.32 by `make zoo`."""

MOST_LAYERS = 1000
"""More than any model has; a config with more is broken."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that a base's config names first, or "none"."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "none"


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
JOINED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def projections(architecture: str) -> tuple[str, ...]:
    """Names of a decoder layer's linear layers."""
    return JOINED if architecture == "Phi3ForCausalLM" else PROJECTIONS


Linears = dict[str, tuple[int, int]]
"""Input and output size of each linear layer that can carry an adapter, by module path."""


def linears(config: Mapping[str, Any]) -> Linears:
    """Linear layers of a known architecture, from its config.json alone.

    Configs on the hub keep the language model's sizes at the top, later ones in `text_config`.
    Raises KeyError, TypeError or ValueError where they say no sound sizes.
    """
    architecture = config["architectures"][0]
    text = text_config(config)
    prefix = "model.language_model" if architecture in VISION else "model"
    layers: Linears = {}
    for layer in range(layer_count(text, "num_hidden_layers")):
        for name, size in layer_of(architecture, text).items():
            layers[f"{prefix}.layers.{layer}.{name}"] = size
    if architecture in VISION:
        layers |= vision_tower(architecture, config["vision_config"])
    return layers


def layer_of(architecture: str, text: Mapping[str, Any]) -> Linears:
    """Linear layers of one decoder layer by their names there."""
    return fused_layer(text) if architecture == "Phi3ForCausalLM" else decoder_layer(text)


def layer_count(config: Mapping[str, Any], key: str) -> int:
    count = config[key]
    if not (isinstance(count, int) and 0 < count <= MOST_LAYERS):
        raise ValueError(f"{key} is {str(count)[:40]}")
    return count


def tables(config: Mapping[str, Any]) -> Linears:
    """Embeddings and head, as (inputs, outputs) of what an adapter on them multiplies."""
    text = text_config(config)
    if "vocab_size" not in text:
        return {}
    vocabulary, hidden = int(text["vocab_size"]), int(text["hidden_size"])
    prefix = "model.language_model" if config["architectures"][0] in VISION else "model"
    return {f"{prefix}.embed_tokens": (vocabulary, hidden), "lm_head": (hidden, vocabulary)}


def decoder_layer(text: Mapping[str, Any]) -> Linears:
    """Linear layers of one decoder layer whose projections are separate, by their names there."""
    hidden, inner, heads = (
        text[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head = text.get("head_dim") or hidden // heads
    values = (text.get("num_key_value_heads") or heads) * head
    return {
        "self_attn.q_proj": (hidden, heads * head),
        "self_attn.k_proj": (hidden, values),
        "self_attn.v_proj": (hidden, values),
        "self_attn.o_proj": (heads * head, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def fused_layer(text: Mapping[str, Any]) -> Linears:
    """Phi-3's layer, whose queries, keys and values are one matrix, and gate and up another."""
    layer = decoder_layer(text)
    hidden = text["hidden_size"]
    joined = sum(layer[f"self_attn.{name}_proj"][1] for name in "qkv")
    return {
        "self_attn.qkv_proj": (hidden, joined),
        "self_attn.o_proj": layer["self_attn.o_proj"],
        "mlp.gate_up_proj": (hidden, 2 * layer["mlp.gate_proj"][1]),
        "mlp.down_proj": layer["mlp.down_proj"],
    }


def tower_block(architecture: str, vision: Mapping[str, Any]) -> Linears:
    """Linear layers of one block of the tower; the MLP's output layer is last."""
    is_qwen2_vl = architecture == "Qwen2VLForConditionalGeneration"
    width = vision["embed_dim"] if is_qwen2_vl else vision["hidden_size"]
    inner = int(width * vision["mlp_ratio"]) if is_qwen2_vl else vision["intermediate_size"]
    block = {"attn.qkv": (width, 3 * width), "attn.proj": (width, width)}
    if is_qwen2_vl:
        return block | {"mlp.fc1": (width, inner), "mlp.fc2": (inner, width)}
    if architecture == "Qwen2_5_VLForConditionalGeneration":
        block |= {f"mlp.{name}_proj": (width, inner) for name in ("gate", "up")}
        return block | {"mlp.down_proj": (inner, width)}
    return block | {"mlp.linear_fc1": (width, inner), "mlp.linear_fc2": (inner, width)}


def vision_tower(architecture: str, vision: Mapping[str, Any]) -> Linears:
    """Linear layers of the tower and its merger, whose input is a square of patches."""
    is_qwen2_vl = architecture == "Qwen2VLForConditionalGeneration"
    block = tower_block(architecture, vision)
    width, _ = block["attn.qkv"]
    out_features = vision["hidden_size"] if is_qwen2_vl else vision["out_hidden_size"]
    merged = width * vision.get("spatial_merge_size", 2) ** 2
    layers = {
        f"model.visual.blocks.{layer}.{name}": size
        for layer in range(layer_count(vision, "depth"))
        for name, size in block.items()
    }
    if architecture != "Qwen3VLForConditionalGeneration":
        merger = "model.visual.merger.mlp"
        return layers | {f"{merger}.0": (merged, merged), f"{merger}.2": (merged, out_features)}
    mergers = ["merger"]
    mergers += [
        f"deepstack_merger_list.{i}" for i in range(len(vision["deepstack_visual_indexes"]))
    ]
    for merger in mergers:
        layers[f"model.visual.{merger}.linear_fc1"] = (merged, merged)
        layers[f"model.visual.{merger}.linear_fc2"] = (merged, out_features)
    return layers
