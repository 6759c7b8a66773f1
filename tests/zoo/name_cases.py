"""Tensors under other names than PEFT's, beside them, and in place of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapters import Case, named
from edits import config, each, plus, renamed, weights, without

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
K0 = "base_model.model.model.layers.0.self_attn.k_proj"
NORM = "base_model.model.model.layers.0.input_layernorm"


LOST = "weights of a target are not in the file; what trained them meant them to be"
NOWHERE = "weights that reach no layer are of another base"


def pair(module: str, inputs: int, outputs: int, rank: int = 4, value: float = 0.1) -> Any:
    """Matrices of one module more."""
    import torch

    def edit(result: dict[str, Any]) -> dict[str, Any]:
        return result | {
            f"{module}.lora_A.weight": torch.full((rank, inputs), value),
            f"{module}.lora_B.weight": torch.full((outputs, rank), value),
        }

    return weights(edit)


def cases() -> Iterator[Case]:
    case = named("name", "mistral")
    three = ["q_proj", "k_proj", "v_proj"]
    yield case(
        "prefix-twice", renamed("base_model.model.model", "base_model.model.base_model.model.model")
    )
    yield case("prefix-of-model", renamed("base_model.model.model.", "model."))
    yield case("prefix-of-peft-model", renamed("base_model.", "model.base_model."))
    yield case("lower-case", renamed("lora_A", "lora_a"))
    yield case("upper-case", renamed("q_proj", "Q_PROJ"))
    yield case("no-weight", renamed("lora_A.weight", "lora_A"))
    yield case("weight-twice", renamed("lora_A.weight", "lora_A.weight.weight"))
    yield case("other-name", renamed("lora_A", "lora_down"))
    yield case("embedding-names", renamed("lora_A.weight", "lora_embedding_A"))
    yield case(
        "swapped",
        renamed("lora_A", "lora_C"),
        renamed("lora_B", "lora_A"),
        renamed("lora_C", "lora_B"),
    )
    yield case("layer-01", renamed("layers.1.", "layers.01."))
    yield case("double-dot", renamed("self_attn.q_proj", "self_attn..q_proj"))
    yield case("no-attention", renamed("self_attn.q_proj", "q_proj"))
    yield case("transformer", renamed("model.layers", "transformer.h"))
    yield case("fused-qkv", renamed("q_proj", "qkv_proj"))
    yield case("fused-gate-up", renamed("gate_proj", "gate_up_proj"), target_modules=["gate_proj"])
    yield case("compiled", renamed("base_model.model.", "base_model.model._orig_mod."))
    yield case("compiled-outside", renamed("base_model.", "_orig_mod.base_model."))
    yield case("distributed", renamed("base_model.", "module.base_model."))
    yield case("sharded", renamed("self_attn.", "_fsdp_wrapped_module.self_attn."))
    yield case("adapters-name", renamed("lora_B.weight", "lora_B.style.weight"))
    yield case("saved-in-the-base", renamed("q_proj.lora_A", "q_proj.base_layer.lora_A"))
    yield case("blank-in-front", renamed("base_model.model.model", " base_model.model.model"))
    yield case("table-names-beside", plus(f"{Q0}.lora_embedding_A", 4, 128))
    yield case("extra-module", pair(K0, 128, 64))
    yield case("extra-two-ranks", pair(K0, 128, 64, rank=2))
    yield case("extra-module-zero", pair(K0, 128, 64, value=0.0))
    yield case("extra-layer", pair(Q0.replace("layers.0", "layers.9"), 128, 128), policy=NOWHERE)
    yield case(
        "extra-layer-zero",
        pair(Q0.replace("layers.0", "layers.9"), 128, 128, value=0.0),
        policy=NOWHERE,
    )
    yield case("extra-elsewhere", pair("base_model.model.tail.q_proj", 128, 128), policy=NOWHERE)
    yield case("extra-norm", pair(NORM, 128, 128))
    yield case("extra-head", pair("base_model.model.lm_head", 128, 266))
    yield case("extra-base-layer", plus(f"{Q0}.base_layer.weight", 128, 128))
    yield case(
        "extra-embeddings", plus("base_model.model.model.embed_tokens.base_layer.weight", 266, 128)
    )
    yield case(
        "extra-head-base-layer", plus("base_model.model.lm_head.base_layer.weight", 266, 128)
    )
    yield case(
        "extra-embedding-weight", plus("base_model.model.model.embed_tokens.weight", 266, 128)
    )
    yield case("extra-scale", plus(f"{Q0}.scale", 1))
    yield case("extra-magnitude", plus(f"{Q0}.lora_magnitude_vector", 128))
    yield case("extra-diagonal", plus(f"{Q0}.lora_diag", 4))
    yield case("extra-adalora", plus(f"{Q0}.lora_E", 4, 1))
    yield case("extra-prompt", plus("prompt_embeddings", 4, 128))
    yield case("extra-empty-name", plus("", 4))
    yield case("targets-fewer", config(target_modules=["q_proj"]))
    yield case("targets-more", config(target_modules=three), policy=LOST)
    yield case("targets-other", config(target_modules=["k_proj"]))
    yield case(
        "targets-paths",
        config(
            target_modules=[f"model.layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qv"]
        ),
    )
    yield case(
        "targets-paths-fewer",
        config(
            target_modules=[f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qv"]
        ),
    )
    yield case("targets-ends", config(target_modules=["self_attn.q_proj", "self_attn.v_proj"]))
    yield case("targets-regex", config(target_modules=r".*\.(q|v)_proj"))
    yield case("targets-regex-fewer", config(target_modules=r".*\.q_proj"))
    yield case("targets-regex-layers", config(target_modules=r".*layers\.[01]\..*(q|v)_proj"))
    yield case("targets-regex-more", config(target_modules=r".*_proj"), policy=LOST)
    yield case("targets-regex-unanchored", config(target_modules=r"(q|v)_proj"))
    yield case("layers-fewer", config(layers_to_transform=[0, 1]))
    yield case(
        "layers-more",
        config(layers_to_transform=[0, 1, 2]),
        layers_to_transform=[0, 1],
        policy=LOST,
    )
    yield case("zero-module", each(lambda key, value: value * ("q_proj" not in key)), retuned=True)
    yield case(
        "zero-module-b", each(lambda key, value: value * ("q_proj.lora_B" not in key)), retuned=True
    )
    yield case(
        "zero-by-halves",
        each(lambda key, value: value * (("q_proj" in key) == ("lora_A" in key))),
        retuned=True,
    )
    yield case("cancelling", each(cancelled), retuned=True)
    yield case("vanishing", each(lambda key, value: value * 1e-30), retuned=True)
    yield case("faint", each(lambda key, value: value * 1e-9), retuned=True)
    yield case(
        "overflowing", each(lambda key, value: value * 1e38), config(lora_alpha=64), retuned=True
    )
    yield case("large", each(lambda key, value: value * 1e30), retuned=True)
    yield case(
        "minus-zero",
        each(lambda key, value: value * (-0.0 if "lora_B" in key else 1)),
        retuned=True,
    )
    yield case("one-value", each(lambda key, value: value * 0 + 0.01), retuned=True)
    yield case("a-of-one-module", without("layers.0.self_attn.q_proj.lora_B"))
    yield case("b-of-one-module", without("layers.0.self_attn.q_proj.lora_A"))
    yield case("three-dimensions", each(lambda key, value: value[None]))
    yield case("one-dimension", each(lambda key, value: value.reshape(-1)))
    yield case("empty-tensors", each(lambda key, value: value[:0]))
    yield case("a-wider", each(lambda key, value: value.repeat(1, 2) if "lora_A" in key else value))
    yield case("a-narrower", each(lambda key, value: value[:, :64] if "lora_A" in key else value))
    yield case(
        "rank-mixed", each(lambda key, value: value[:2] if "q_proj.lora_A" in key else value)
    )


def cancelled(key: str, value: Any) -> Any:
    """Two ranks that undo each other."""
    import torch

    half = value[:2] if "lora_A" in key else value[:, :2]
    return torch.cat([half, half if "lora_A" in key else -half], 0 if "lora_A" in key else 1)
