"""Bases that cannot be trained or served are refused by name, before anything is trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from loraline.base import architectures, trainable
from loraline.errors import UserError
from loraline.profiles.loading import load_profile


def test_a_base_that_the_server_cannot_load_is_refused_before_it_is_trained_on() -> None:
    config = {
        "architectures": ["MistralForCausalLM"],
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    with pytest.raises(UserError, match=r"4 or 8 bits of bitsandbytes.* it was made from"):
        trainable.check_base(load_profile("standard"), config)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    trainable.check_base(load_profile("standard"), config)
    with pytest.raises(UserError, match=r"fp8 rounds an unquantized base, and .* is quantized"):
        trainable.check_base(load_profile("standard", overrides=["quantization=fp8"]), config)


PHI = {"architectures": ["Phi3ForCausalLM"]}


def test_layers_that_a_base_does_not_have_are_named_before_training() -> None:
    standard = load_profile("standard")
    with pytest.raises(UserError, match=r"has no q_proj; it has qkv_proj, o_proj, gate_up_proj"):
        trainable.check_base(standard, PHI)
    joined = load_profile("standard", overrides=["target_modules=[qkv_proj, o_proj]"])
    trainable.check_base(joined, PHI)
    with pytest.raises(UserError, match=r"MistralForCausalLM has no qkv_proj"):
        trainable.check_base(joined, {"architectures": ["MistralForCausalLM"]})
    with pytest.raises(UserError, match=r"longrope"):
        trainable.check_base(joined, {**PHI, "rope_scaling": {"type": "longrope"}})
    trainable.check_base(standard, {"architectures": ["Gemma3ForCausalLM"]})


@pytest.mark.parametrize("name", sorted(architectures.NOT_TRAINED))
def test_the_first_step_names_what_cannot_be_trained(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": [name]}))
    why = re.escape(architectures.NOT_TRAINED[name])
    for recipe in (load_profile("standard"), load_profile("qwen3-vl")):
        with pytest.raises(UserError, match=why):
            trainable.check_located(recipe.model_copy(update={"base": str(base)}), base)


def test_a_base_that_is_no_folder_is_said_by_the_first_step(tmp_path: Path) -> None:
    standard = load_profile("standard")
    nothing = standard.model_copy(update={"base": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match=r"nothing' is no folder here, and the hub did not give it"):
        trainable.check_located(nothing, None)
    trainable.check_located(standard.model_copy(update={"base": "owner/out-of-reach"}), None)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is no JSON"):
        trainable.check_located(load_profile("standard"), tmp_path)
