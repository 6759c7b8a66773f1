"""A base in GPTQ: its files, what is adapted, and where it is refused in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from loraline.base import locate, quantized, targets, trainable
from loraline.errors import UserError
from loraline.profiles.loading import load_profile
from loraline.profiles.profile import Profile
from loraline.serving import sizing
from loraline.training import memory

ROOT = Path(__file__).parents[3]
WHOLE = ROOT / "test_data/text/base"


@pytest.fixture(scope="module")
def tiny(script: Any) -> Any:
    return script("test_data/tiny_gptq.py")


@pytest.fixture(scope="module")
def base(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bases") / "gptq"
    tiny.tiny_gptq.callback(WHOLE, folder)
    return folder


def recipe(**keys: Any) -> Profile:
    given = [f"{key}={value}" for key, value in {"quantization": "none", **keys}.items()]
    return load_profile("smoke-text", ROOT / "lora_profiles", overrides=given)


def test_each_weight_is_kept_to_half_a_level_of_its_group(tiny: Any, base: Path) -> None:
    whole, stored = load_file(WHOLE / "model.safetensors"), load_file(base / "model.safetensors")
    projections = [name for name in whole if name.endswith("_proj.weight")]
    assert len(projections) == 3 * 7
    for name in projections:
        keys = ("qweight", "qzeros", "scales", "g_idx")
        tensors = {key: stored[name.replace("weight", key)] for key in keys}
        assert tensors["qweight"].shape == (whole[name].shape[1] // 8, whole[name].shape[0])
        wrong = (tiny.unpacked(tensors) - whole[name].float()).abs()
        level = tensors["scales"].float()[tensors["g_idx"].long()].t()
        assert (wrong <= 0.501 * level).all()
    assert whole.keys() - stored.keys() == set(projections)


def test_the_same_layers_are_adapted_and_the_server_takes_it(base: Path) -> None:
    result, whole = locate.locate(str(base), None), locate.locate(str(WHOLE), None)
    assert result.revision != whole.revision
    adapted = re.compile(targets.targets_of(recipe()))
    names = {
        name.rpartition(".")[0]
        for name in load_file(base / "model.safetensors")
        if adapted.fullmatch(name.rpartition(".")[0])
    }
    assert len(names) == 3 * 7
    trainable.check_base(recipe(), result.config)
    four = sizing.weight_bytes(result.config, "float16")
    assert four < sizing.weight_bytes(whole.config, "float16")


def test_the_memory_plan_counts_what_the_files_hold(base: Path) -> None:
    stored = load_file(base / "model.safetensors").values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert memory.weight_bytes(base, memory.CPU, "none") == held


def config(**quantization: Any) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((WHOLE / "config.json").read_text())
    return read | ({"quantization_config": quantization} if quantization else {})


@pytest.mark.parametrize(
    ("keys", "method", "missing", "message"),
    [
        ({}, "awq", [], "quantized by awq, on which nothing is trained here"),
        ({"quantization": "nf4"}, "gptq", [], "not rounded once more: set quantization: none"),
        ({"train": "full", "export": "merged"}, "gptq", [], "weights of few bits cannot learn"),
        ({"init_lora_weights": "pissa"}, "gptq", [], "init_lora_weights takes components out of"),
        ({}, "gptq", ["gptqmodel"], "this environment lacks gptqmodel"),
        ({}, "gptq", ["gptqmodel", "optimum"], "this environment lacks gptqmodel and optimum"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    method: str,
    missing: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(UserError, match=re.escape(message)):
        quantized.check_trainable(recipe(**keys), config(quant_method=method, bits=4))


def test_a_base_in_gptq_or_in_16_bits_can_be_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: name)
    quantized.check_trainable(recipe(), config(quant_method="gptq", bits=4))
    quantized.check_trainable(recipe(quantization="nf4"), config())
