"""Settings that are no sound value: of every kind of JSON, in every place that takes a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapters import Case, named
from edits import config, config_text, fewer, without

NAN, INF = float("nan"), float("inf")

ALPHAS: dict[str, Any] = {
    "nan": NAN,
    "infinity": INF,
    "minus-infinity": -INF,
    "text": "8",
    "list": [8],
    "object": {},
    "true": True,
    "false": False,
    "null": None,
    "negative": -8,
    "fraction": 0.5,
    "float": 8.0,
    "tiny": 1e-30,
    "vanishing": 1e-60,
    "overflowing": 1e39,
    "largest": 1e308,
    "huge-integer": 10**400,
}
RANKS: dict[str, Any] = {
    "nan": NAN,
    "infinity": INF,
    "text": "4",
    "list": [4],
    "true": True,
    "null": None,
    "float": 4.0,
    "fraction": 4.5,
    "negative": -4,
}
PATTERNS: dict[str, Any] = {
    "text": "q_proj",
    "list": ["q_proj"],
    "empty-list": [],
    "null": None,
    "number": 4,
    "true": True,
    "no-regex": {"(": 4},
    "no-match": {"k_proj": 8},
    "empty-key": {"": 8},
    "text-value": {"q_proj": "4"},
    "float-value": {"q_proj": 4.0},
    "list-value": {"q_proj": [4]},
    "null-value": {"q_proj": None},
    "true-value": {"q_proj": True},
    "zero-value": {"q_proj": 0},
    "nan-value": {"q_proj": NAN},
    "infinite-value": {"q_proj": INF},
    "negative-value": {"q_proj": -4},
    "unused-nan": {"k_proj": NAN},
    "unused-text": {"k_proj": "4"},
    "same-value": {"q_proj": 4},
    "anchored": {r"^model\.layers\.0\..*q_proj": 4},
    "wrapped": {"base_model.model.model.layers.0.self_attn.q_proj": 8},
    "first-of-two": {"q_proj": 4, "self_attn.q_proj": 8},
    "part-of-a-name": {"proj": 8},
    "behind-a-bar": {"k_proj|q_proj": 4},
    "dollar": {"q_proj$": 4},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "rslora-text": {"use_rslora": "yes"},
    "rslora-null": {"use_rslora": None},
    "rslora-added": {"use_rslora": True},
    "bias-null": {"bias": None},
    "bias-false": {"bias": False},
    "dora-text": {"use_dora": "false"},
    "dora-zero": {"use_dora": 0},
    "lora-bias-null": {"lora_bias": None},
    "saved-empty": {"modules_to_save": []},
    "saved-score": {"modules_to_save": ["score"]},
    "saved-text": {"modules_to_save": "score"},
    "saved-head-in-config": {"modules_to_save": ["lm_head"]},
    "init-null": {"init_lora_weights": None},
    "init-false": {"init_lora_weights": False},
    "init-number": {"init_lora_weights": 1},
    "init-object": {"init_lora_weights": {}},
    "init-upper-case": {"init_lora_weights": "GAUSSIAN"},
    "init-mica": {"init_lora_weights": "mica"},
    "init-true-text": {"init_lora_weights": "true"},
    "fan-in": {"fan_in_fan_out": True},
    "dropout": {"lora_dropout": 0.5},
    "dropout-text": {"lora_dropout": "0.1"},
    "dropout-null": {"lora_dropout": None},
    "dropout-two": {"lora_dropout": 2.0},
    "dropout-nan": {"lora_dropout": NAN},
    "dropout-negative": {"lora_dropout": -0.5},
    "task": {"task_type": "CAUSAL_LM"},
    "task-unknown": {"task_type": "causal_lm"},
    "task-classify": {"task_type": "SEQ_CLS"},
    "task-embedding": {"task_type": "FEATURE_EXTRACTION"},
    "type-lower-case": {"peft_type": "lora"},
    "type-adalora": {"peft_type": "ADALORA"},
    "type-null": {"peft_type": None},
    "version-number": {"peft_version": 1},
    "version-null": {"peft_version": None},
    "revision-null": {"revision": None},
    "training": {"inference_mode": False},
    "auto-mapping": {"auto_mapping": {"base_model_class": "MistralForCausalLM"}},
    "targets-empty": {"target_modules": []},
    "targets-empty-text": {"target_modules": ""},
    "targets-null": {"target_modules": None},
    "targets-object": {"target_modules": {}},
    "targets-object-of-names": {"target_modules": {"q_proj": 1, "v_proj": 1}},
    "targets-number": {"target_modules": 5},
    "targets-mixed": {"target_modules": ["q_proj", "v_proj", 5]},
    "targets-nested": {"target_modules": [["q_proj"], "v_proj"]},
    "targets-name-as-text": {"target_modules": "q_proj"},
    "targets-no-regex": {"target_modules": "(q_proj|v_proj"},
    "targets-unknown-beside": {"target_modules": ["q_proj", "v_proj", "query"]},
    "excluded-null": {"exclude_modules": None},
    "excluded-empty": {"exclude_modules": []},
    "excluded-no-regex": {"exclude_modules": "("},
    "excluded-number": {"exclude_modules": 5},
    "excluded-true": {"exclude_modules": True},
    "excluded-all": {"exclude_modules": ["q_proj", "v_proj"]},
    "excluded-weights": {"exclude_modules": ["v_proj"]},
    "excluded-other": {"exclude_modules": ["k_proj"]},
    "excluded-regex": {"exclude_modules": r".*\.v_proj"},
    "layers-empty": {"layers_to_transform": []},
    "layers-all": {"layers_to_transform": [0, 1, 2]},
    "layers-one": {"layers_to_transform": 1},
    "layers-first": {"layers_to_transform": [0]},
    "layers-true": {"layers_to_transform": True},
    "layers-text": {"layers_to_transform": "0"},
    "layers-texts": {"layers_to_transform": ["0", "1", "2"]},
    "layers-absent": {"layers_to_transform": [9]},
    "layers-object": {"layers_to_transform": {}},
    "pattern-alone": {"layers_pattern": "layers"},
    "pattern-and-layers": {"layers_pattern": "layers", "layers_to_transform": [0, 1, 2]},
    "pattern-list": {"layers_pattern": ["h", "layers"], "layers_to_transform": [0, 1, 2]},
    "pattern-other": {"layers_pattern": "h", "layers_to_transform": [0, 1, 2]},
    "pattern-no-regex": {"layers_pattern": "(", "layers_to_transform": [0, 1, 2]},
    "pattern-number": {"layers_pattern": 5, "layers_to_transform": [0, 1, 2]},
    "pattern-empty": {"layers_pattern": [], "layers_to_transform": [0, 1, 2]},
    "parameters-empty": {"target_parameters": []},
    "parameters-text": {"target_parameters": "mlp"},
    "parameters-unknown": {"target_parameters": ["mlp.experts.down_proj"]},
    "replication-empty": {"layer_replication": []},
    "alora-empty": {"alora_invocation_tokens": []},
    "tokens-empty": {"trainable_token_indices": []},
    "tokens-in-config": {"trainable_token_indices": [1, 2]},
    "kasa": {"kasa_config": {}},
    "kasa-switch": {"use_kasa": True},
    "velora": {"velora_config": {}},
    "monteclora": {"monteclora_config": {}},
    "arrow": {"arrow_config": {}},
    "eva-config": {"eva_config": {"rho": 2.0}},
    "eva-config-unknown": {"eva_config": {"no_such_key": 1}},
    "corda-config-text": {"corda_config": "yes"},
    "loftq-config": {"loftq_config": {"loftq_bits": 4}},
    "lora-ga-config": {"lora_ga_config": {}},
    "megatron": {"megatron_config": {"x": 1}},
    "tying": {"ensure_weight_tying": True},
    "qalora-group": {"qalora_group_size": 8},
    "qalora-null": {"use_qalora": None},
    "bdlora-empty": {"use_bdlora": {}},
    "runtime": {"runtime_config": {"ephemeral_gpu_offload": False}},
    "targets-twice": {"target_modules": ["q_proj", "v_proj", "q_proj"]},
    "targets-dotted": {"target_modules": [".q_proj", "v_proj"]},
    "targets-with-star": {"target_modules": ["layers.*.q_proj", "v_proj"]},
    "targets-choice": {"target_modules": "q_proj|v_proj"},
    "targets-any-case": {"target_modules": r"(?i).*\.(Q|V)_PROJ"},
    "targets-blank": {"target_modules": ["q_proj ", "v_proj"]},
    "excluded-path": {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "excluded-no-string-match": {"exclude_modules": "v_proj"},
    "layers-negative": {"layers_to_transform": [-1]},
    "layers-floats": {"layers_to_transform": [0.0, 1.0, 2.0]},
    "layers-twice": {"layers_to_transform": [0, 0, 1, 2]},
    "pattern-of-paths": {"layers_pattern": "model.layers", "layers_to_transform": [0, 1, 2]},
    "pattern-empty-text": {"layers_pattern": "", "layers_to_transform": [0, 1, 2]},
    "type-missing-lora": {"peft_type": "LORA "},
    "rank-in-both": {"rank": 8},
    "alpha-in-both": {"alpha": 64},
    "scaling": {"scaling": {"q_proj": 4.0}},
    "init-olora-upper": {"init_lora_weights": "OLoRA"},
    "init-eva-upper": {"init_lora_weights": "EVA"},
    "dropout-true": {"lora_dropout": True},
    "bias-upper": {"bias": "None"},
    "dora-one": {"use_dora": 1},
    "tokens-object": {"trainable_token_indices": {"embed_tokens": [1]}},
    "replication-zero": {"layer_replication": 0},
    "unknown-set": {"use_moslora": True},
    "unknown-config": {"some_new_config": {"a": 1}},
    "unknown-null": {"some_new_key": None},
    "unknown-false": {"some_new_key": False},
    "vllm-scaling": {"vllm_lora_scaling_factor": 0.1},
}


OTHER_METHOD = "PEFT and vLLM leave out a key that says the adapter is more than a LoRA"
POLICIES = {
    "targets-null": "which modules it leaves open is another in each release of PEFT",
    "targets-object-of-names": "PEFT writes a list",
    "parameters-unknown": "vLLM never reads it",
    "kasa-switch": OTHER_METHOD,
    "unknown-set": OTHER_METHOD,
    "rank-in-both": OTHER_METHOD,
    "alpha-in-both": OTHER_METHOD,
    "scaling": OTHER_METHOD,
    "unknown-config": OTHER_METHOD,
    "vllm-scaling": OTHER_METHOD,
}
LOST = "weights of a target are not in the file; what trained them meant them to be"


def cases() -> Iterator[Case]:
    case = named("number", "mistral")
    for name, alpha in ALPHAS.items():
        yield case(f"alpha-{name}", config(lora_alpha=alpha), retuned=True)
    for name, rank in RANKS.items():
        yield case(f"rank-{name}", config(r=rank), retuned=True)
    for name, pattern in PATTERNS.items():
        yield case(f"alpha-pattern-{name}", config(alpha_pattern=pattern), retuned=True)
        yield case(f"rank-pattern-{name}", config(rank_pattern=pattern), retuned=True)
    for name, settings in SETTINGS.items():
        yield case(
            name,
            config(**settings),
            retuned=name in ("rslora-text", "rslora-added"),
            policy=POLICIES.get(name, ""),
        )
    all_linear = {"target_modules": "all-linear"}
    yield case("all-linear-upper-case", config(target_modules="All-Linear"), **all_linear)
    yield case("all-linear-lost", config(**all_linear), policy=LOST)
    yield case("all-linear-excluded", config(exclude_modules=["o_proj"]), **all_linear)
    yield case("regex-with-layers", config(layers_to_transform=[0]), target_modules=".*q_proj")
    yield case("both-wrong", config(r="4", lora_alpha=None))
    yield case("rank-and-alpha-nan", config(r=NAN, lora_alpha=NAN))
    yield case("patterns-nan", config(rank_pattern={"q_proj": 4}, alpha_pattern={".*": NAN}))
    yield case("alpha-pattern-zero-everywhere", config(alpha_pattern={".*": 0}), retuned=True)
    yield case("rslora-rank-zero", config(r=0, use_rslora=True))
    yield case("config-empty", config_text(lambda text: ""))
    yield case("config-list", config_text(lambda text: "[]"))
    yield case("config-null", config_text(lambda text: "null"))
    yield case("config-cut", config_text(lambda text: text[:-3]))
    yield case("config-latin", config_text(lambda text: text.encode()[:-1] + b', "x": "\xe9"}'))
    yield case("config-marked", config_text(lambda text: "\ufeff" + text))
    yield case("config-twice", config_text(lambda text: text[:-1] + ', "r": 32}'))
    yield case(
        "config-deep",
        config_text(lambda text: text[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}"),
    )
    yield case("config-spaced", config_text(lambda text: f"\n\n {text} \n"))
    yield case("two-tensors", fewer(2))
    yield case("half-of-each", without("layers.1."), target_modules=["q_proj", "k_proj"])
