"""Adapters for a text base, Mistral: 3 layers, 128 wide."""

from __future__ import annotations

from collections.abc import Iterator

from adapters import Case, named
from edits import (
    as_pickle,
    cast,
    config,
    cut,
    each,
    filled,
    first,
    plus,
    removed,
    renamed,
    resized,
    to_rank_32,
    weights,
    without,
)

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def cases() -> Iterator[Case]:
    case = named("text", "mistral")
    seven = list(SEVEN)
    yield case("plain")
    yield case("seven", target_modules=seven, r=8)
    yield case("k-alone", target_modules=["k_proj"])
    yield case("o-down", target_modules=["o_proj", "down_proj"])
    yield case("rank-1", r=1)
    yield case("rank-3", r=3)
    yield case("rank-16", r=16)
    yield case("rslora", use_rslora=True)
    yield case("rank-pattern", rank_pattern={"q_proj": 2})
    yield case("rank-pattern-path", rank_pattern={"layers.1.self_attn.q_proj": 8})
    yield case("alpha-pattern", alpha_pattern={"v_proj": 32})
    yield case("both-patterns", rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 32})
    yield case("regex", target_modules=r".*layers\.[01]\.mlp\.(?:up|down)_proj")
    yield case("all-linear", target_modules="all-linear")
    yield case("two-layers", layers_to_transform=[0, 2])
    yield case("excluded", exclude_modules=["v_proj"])
    yield case("gaussian", init_lora_weights="gaussian")
    yield case("orthogonal", init_lora_weights="orthogonal")
    yield case("eva-in-config", config(init_lora_weights="eva"))
    yield case("lora-ga-in-config", config(init_lora_weights="lora_ga"))
    yield case("bfloat16", cast("bfloat16"), precision="bfloat16")
    yield case("float16", cast("float16"), precision="float16")
    yield case("float64", cast("float64"))
    yield case("huge-alpha", lora_alpha=64)

    yield case("dora", use_dora=True)
    yield case("bias-all", bias="all")
    yield case("bias-lora-only", bias="lora_only")
    yield case("lora-bias", lora_bias=True)
    yield case("saved-head", modules_to_save=["lm_head"])
    yield case("saved-embeddings", modules_to_save=["embed_tokens"])
    yield case("saved-norm", modules_to_save=["norm"])
    yield case("lora-head", target_modules=["q_proj", "lm_head"])
    yield case("lora-embeddings", target_modules=["q_proj", "embed_tokens"])
    yield case("trained-tokens", trainable_token_indices=[1, 2])
    yield case("rank-32", r=32)
    yield case("rank-pattern-32", rank_pattern={"q_proj": 32})
    yield case("rank-zero", config(r=0))
    yield case("rank-missing", config(("r",)))
    yield case("alpha-missing", config(("lora_alpha",)))
    yield case("alpha-zero", config(lora_alpha=0), retuned=True)
    yield case("targets-missing", config(("target_modules",)))
    yield case("rank-pattern-negative", config(rank_pattern={"q_proj": -1}))
    yield case("olora", init_lora_weights="olora")
    yield case("pissa", init_lora_weights="pissa")
    yield case("pissa-niter", init_lora_weights="pissa_niter_4")
    yield case("loftq-in-config", config(init_lora_weights="loftq"))
    yield case("corda-in-config", config(init_lora_weights="corda"))
    yield case("unknown-init-in-config", config(init_lora_weights="other"))
    yield case("alora", alora_invocation_tokens=[3, 4])
    yield case("layer-replication", config(layer_replication=[[0, 2], [1, 3]]))
    yield case("qalora-in-config", config(use_qalora=True))
    yield case("bdlora-in-config", config(use_bdlora={"nblocks": 2}))
    yield case("ia3", method="IA3Config", target_modules=["k_proj"], feedforward_modules=[])
    yield case("loha", method="LoHaConfig")
    yield case("lokr", method="LoKrConfig")
    yield case("vera", method="VeraConfig", target_modules=["q_proj"])
    yield case("a-alone", without("lora_B"))
    yield case("b-alone", without("lora_A"))
    yield case("b-missing-once", without("layers.1.self_attn.q_proj.lora_B"))
    yield case("leftover-name", renamed("lora_A.weight", "lora_A.default.weight"))
    yield case("unknown-projection", renamed("q_proj", "query"))
    yield case("other-layer-kind", renamed("self_attn.q_proj", "self_attn.gate_proj"))
    yield case("norm-weight", plus("base_model.model.model.norm.weight", 128))
    yield case("bias-weight", plus(f"{Q0}.lora_B.bias", 128))
    yield case("cut-file", cut)
    yield case("no-tensors", weights(lambda result: {}))
    yield case("no-weights-file", removed("adapter_model.safetensors"))
    yield case("no-config-file", removed("adapter_config.json"))
    yield case("pickle", as_pickle, policy="a pickle can run code when it is loaded")
    yield case("config-rank-too-high", config(r=8))
    yield case("tensor-rank-too-high", each(resized))
    yield case("tensor-rank-over-limit", each(to_rank_32))
    yield case("no-prefix", renamed("base_model.model.", ""))
    yield case("half-prefix", renamed("base_model.model.", "base_model."))
    yield case("doubled-model", renamed(".model.model.layers", ".model.model.model.layers"))
    yield case("vision-path", renamed(".model.layers", ".model.language_model.layers"))
    yield case("no-such-layer", renamed("layers.2", "layers.7"))
    yield case("all-layers-too-high", renamed("layers.", "layers.1"))
    yield case("no-layer-number", renamed("layers.0.", "layers."))
    yield case("layer-lost", without("layers.1."))
    yield case("module-lost", without("layers.1.self_attn.q_proj"))
    yield case("nan", filled(float("nan")))
    yield case("infinity", filled(float("inf")))
    yield case("zero-b", scale=0.0)
    yield case("zero-a", each(lambda key, value: value * ("lora_B" in key)))
    yield case("transposed", each(lambda key, value: value.T))
    yield case("wider-output", first(lambda value: value.repeat(2, 1)))
    yield case("narrower-output", first(lambda value: value[:32]))
    yield case("smaller-sibling", trained_on={"hidden_size": 64})
    yield case("wider-sibling", trained_on={"hidden_size": 256})
    yield case("deeper-sibling", trained_on={"num_hidden_layers": 5})
    yield case("shallower-sibling", trained_on={"num_hidden_layers": 2}, target_modules=seven)
    yield case("more-value-heads", trained_on={"num_key_value_heads": 4})
    yield case("fewer-value-heads", trained_on={"num_key_value_heads": 1})
    yield case(
        "other-base-name",
        config(base_model_name_or_path="other/base"),
        policy="the contract names another base",
    )
