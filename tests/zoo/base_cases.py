"""The same adapters on each text architecture, whose heads and names differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bases
from adapters import Case, named
from edits import cast, config, each, filled, plus, renamed, without

NAMES = {
    "phi3": (["qkv_proj", "o_proj"], ["gate_up_proj", "down_proj"]),
}
DENSE = (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"])


def cases() -> Iterator[Case]:
    yield from each_base("mistral")
    for base in bases.OTHERS:
        yield from each_base(base)


def each_base(base: str) -> Iterator[Case]:
    case = named(f"on-{base}", base)
    attention, mlp = NAMES.get(base, DENSE)
    some = {"target_modules": attention[:1] + attention[2:3]}
    first = attention[0]
    yield case("some", **some)
    yield case("attention", target_modules=attention)
    if mlp:
        yield case("mlp", target_modules=mlp)
        yield case("all", target_modules=attention + mlp)
    yield case("all-linear", target_modules="all-linear")
    yield case("rslora", use_rslora=True, **some)
    yield case("rank-pattern", rank_pattern={first: 2}, alpha_pattern={first: 32}, **some)
    yield case("first-layer", layers_to_transform=[0], **some)
    yield case("bfloat16", cast("bfloat16"), precision="bfloat16", **some)
    yield case("head", target_modules=[first, "lm_head"])
    yield case("head-alone", target_modules=["lm_head"])
    yield case("embeddings", target_modules=[first, "embed_tokens"])
    yield case("embeddings-alone", target_modules=["embed_tokens"])
    yield case("head-and-embeddings", target_modules=[first, "embed_tokens", "lm_head"])
    yield case("head-rank-16", r=16, target_modules=[first, "lm_head"])
    yield case(
        "embeddings-rank-pattern",
        rank_pattern={"embed_tokens": 2},
        target_modules=[first, "embed_tokens"],
    )
    no_base = without("base_layer")
    yield case("embeddings-without-base", no_base, target_modules=[first, "embed_tokens"])
    yield case("head-without-base", no_base, target_modules=[first, "lm_head"])
    yield case(
        "embeddings-zero",
        zeroed("lora_embedding"),
        retuned=True,
        target_modules=[first, "embed_tokens"],
    )
    yield case("embeddings-nan", nan("lora_embedding_B"), target_modules=[first, "embed_tokens"])
    yield case(
        "head-zero", zeroed("lm_head.lora_B"), retuned=True, target_modules=[first, "lm_head"]
    )
    yield case("saved-head", modules_to_save=["lm_head"], **some)
    yield case("saved-embeddings", modules_to_save=["embed_tokens"], **some)
    yield case("tokens", trainable_token_indices=[1, 2], **some)
    yield case("zero", scale=0.0, **some)
    yield case("nan", filled(float("nan")), **some)
    yield case("no-such-layer", renamed("layers.1", "layers.5"), **some)
    yield case("module-lost", without("layers.1."), **some)
    yield case("norm", plus("base_model.model.model.norm.weight", 128), **some)
    yield case("no-prefix", renamed("base_model.model.", ""), **some)
    yield case("last-layer-by-pattern", layers_to_transform=[1], layers_pattern="layers", **some)
    yield case("layer-excluded", exclude_modules=r".*layers\.0\..*", **some)
    yield case("alpha-of-one-layer", alpha_pattern={r"layers\.0\.self_attn\..*": 32}, **some)
    yield case("layers-swapped", *exchanged("layers.0.", "layers.1."), retuned=True, **some)
    yield case("rank-of-config-doubled", config(r=8), **some)
    yield case("b-of-one-layer-lost", without(f"layers.1.self_attn.{first}.lora_B"), **some)
    yield case("compiled", renamed("model.layers", "model._orig_mod.layers"), **some)
    yield case("one-path", target_modules=[f"model.layers.0.self_attn.{first}"])
    yield case("other-layout", renamed(*other_layout(base)), **some)


def exchanged(one: str, other: str) -> tuple[Any, ...]:
    """Edits that give each of two parts of a path the other's weights."""
    return renamed(one, "held."), renamed(other, one), renamed("held.", other)


def other_layout(base: str) -> tuple[str, str]:
    """A projection's name, and its name where queries, keys and values are one matrix, or not."""
    return ("qkv_proj", "q_proj") if base == "phi3" else ("q_proj", "qkv_proj")


def zeroed(part: str) -> Any:
    return each(lambda key, value: value * (part not in key))


def nan(part: str) -> Any:
    return each(lambda key, value: value * float("nan") if part in key else value)
