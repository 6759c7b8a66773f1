"""An adapter's config is read as PEFT reads it; PEFT itself is the judge here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import peft
import pytest
from peft.tuners.tuners_utils import check_target_module_exists

from loraline.serving import adapter_config

MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1, 11)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.up_proj")
]
MODULES += ["model.visual.blocks.1.attn.qkv", "model.embed_tokens", "lm_head", "q_proj"]


def test_all_keys_and_tasks_of_peft_are_known() -> None:
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} == adapter_config.KNOWN
    assert set(adapter_config.TASKS) == {task.value for task in peft.TaskType}


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "up_proj"]},
        {"target_modules": ["model.layers.1.mlp.up_proj", "lm_head"]},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": r"(q|v)_proj"},
        {"target_modules": r"model\.layers\.\d\..*"},
        {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": [1, 3]},
        {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": 11},
        {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": []},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1.0, 3.0]},
        {"target_modules": ["up_proj"], "layers_to_transform": [3], "layers_pattern": ["experts"]},
        {"target_modules": ["qkv"], "layers_to_transform": [1], "layers_pattern": ["h", "blocks"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "h"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": r".*_proj", "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["proj", "embed_tokens"]},
    ],
)
def test_targets_are_pefts(settings: dict[str, Any]) -> None:
    config = peft.LoraConfig(**settings)
    wanted = [
        module
        for module in MODULES
        # What PEFT returns for an excluded module is true and an object of a class of its own.
        if (result := check_target_module_exists(config, module))
        and type(result).__name__ != "_ExcludedModule"
    ]
    assert [name for name in MODULES if adapter_config.is_target(settings, name)] == wanted


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"v_proj": 2}}, 2.0),
        ({"rank_pattern": {r"layers\.1\..*": 16}}, 0.5),
        ({"rank_pattern": {"proj": 16}}, 2.0),
        ({"lora_alpha": 10**400}, math.inf),
        ({"alpha_pattern": {"q_proj": "2"}}, math.nan),
    ],
)
def test_scalings_follow_the_patterns(settings: dict[str, Any], scaling: float) -> None:
    config = {"r": 4, "lora_alpha": 8, **settings}
    result = adapter_config.scaling_of(config, "model.layers.1.self_attn.q_proj")
    assert result == scaling or (math.isnan(result) and math.isnan(scaling))


def findings(**settings: Any) -> list[str]:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    return [str(each) for each in adapter_config.setting_findings(config | settings, max_rank=64)]


def test_patterns_need_a_vllm_that_reads_them() -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config |= {"rank_pattern": {"q_proj": 2}}
    assert adapter_config.setting_findings(config, max_rank=64, vllm=(0, 33)) == []
    (finding,) = adapter_config.setting_findings(config, max_rank=64, vllm=(0, 31))
    assert str(finding) == "rank_pattern: is not read by vLLM 0.31; serve with 0.32 or later"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eva_config", {"rho": 2.0}),
        ("modules_to_save", []),
        ("some_new_key", None),
        ("auto_mapping", {"base_model_class": "MistralForCausalLM"}),
        ("lora_alpha", True),
    ],
)
def test_what_changes_nothing_is_let_through(key: str, value: Any) -> None:
    assert findings(**{key: value}) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora_alpha", "8", "lora_alpha: is '8', not a number"),
        ("lora_alpha", None, "lora_alpha: is None, not a number"),
        ("r", 4.0, "r: rank 4.0 is not between 1 and 64"),
        ("r", True, "r: rank True is not between 1 and 64"),
        ("rank_pattern", {"(": 4}, "rank_pattern: is {'(': 4}, not an object of regular"),
        ("rank_pattern", {"q_proj": math.nan}, "q_proj: rank nan is not between"),
        ("target_modules", "(q_proj", "not a regular expression or a list of names"),
        ("layers_pattern", "layers", "PEFT takes none without layers_to_transform"),
        ("task_type", "causal_lm", "task_type: is 'causal_lm', not one of SEQ_CLS"),
        ("use_kasa", True, "which is no setting of PEFT's LoRA"),
        ("kasa_config", {}, "kasa_config: is {}, which makes it more than a LoRA"),
        ("lora_dropout", 2.0, "lora_dropout: is 2.0, not a number up to 1"),
        ("x\ny", 1, "x\\ny: is 1"),
        ("init_lora_weights", "EVA", "init_lora_weights: is 'EVA', which changes the base"),
        ("layers_to_transform", 1.0, "layers_to_transform: is 1.0, not a layer's number"),
    ],
)
def test_what_peft_or_vllm_cannot_work_with_is_found(key: str, value: Any, message: str) -> None:
    assert any(message in finding for finding in findings(**{key: value}))
