import json
import re
import shutil
from fnmatch import fnmatch

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loraline.base import load as base_load
from loraline.base.locate import locate, weight_files
from loraline.base.targets import VISION_TOWER, target_modules
from loraline.errors import UserError

ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")


def load(folder, architecture: str, *, quantization: str):
    modality = "text" if architecture == "mistral" else "vision"
    base = locate(str(folder), None)
    return base_load.load(base, modality, quantization=quantization, dtype="float32")


@pytest.mark.parametrize("architecture", ["mistral", *VISION])
def test_the_language_model_is_four_bit_and_nothing_else(tiny_base, architecture: str) -> None:
    model = load(tiny_base(architecture), architecture, quantization="nf4")
    four_bit = {n for n, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert len(four_bit) == 7 * model.config.get_text_config().num_hidden_layers
    assert not any("visual" in name or "lm_head" in name for name in four_bit)
    layer = model.get_submodule(min(four_bit))
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested


@pytest.mark.parametrize("architecture", ["mistral", *VISION])
def test_targets_are_the_language_models_own(tiny_base, architecture: str) -> None:
    modality = "text" if architecture == "mistral" else "vision"
    model = load(tiny_base(architecture), architecture, quantization="none")
    pattern = target_modules(modality, ALL_SEVEN, False)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    assert len(matched) == 7 * model.config.get_text_config().num_hidden_layers
    assert not any("visual" in name for name in matched)


@pytest.mark.parametrize(("architecture", "linears"), list(zip(VISION, (2, 2, 4), strict=True)))
def test_the_merger_is_adapted_when_asked(tiny_base, architecture: str, linears: int) -> None:
    model = load(tiny_base(architecture), architecture, quantization="none")
    pattern = target_modules("vision", ("q_proj",), True)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    merger = [name for name in matched if "visual" in name]
    assert len(merger) == linears
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in merger)


@pytest.mark.parametrize(("architecture", "linears"), list(zip(VISION, (4, 5, 4), strict=True)))
def test_every_linear_layer_of_the_towers_blocks_is_adapted_when_asked(
    tiny_base, architecture: str, linears: int
) -> None:
    model = load(tiny_base(architecture), architecture, quantization="none")
    pattern = target_modules("vision", ("q_proj",), False, True)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    blocks = model.get_submodule(f"{VISION_TOWER}.blocks")
    expected = {
        f"{VISION_TOWER}.blocks.{name}"
        for name, module in blocks.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for name in matched if "visual" in name} == expected
    assert len(expected) == linears * len(blocks)


def adapter(model, folder, *, zero: bool = False):
    targets = target_modules("text", ("q_proj",), False)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    if not zero:
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    tuned.save_pretrained(folder)
    return folder / "adapter_model.safetensors"


def test_an_adapter_that_changes_nothing_is_refused(tiny_base, tmp_path) -> None:
    adapter(load(tiny_base("mistral"), "mistral", quantization="none"), tmp_path, zero=True)
    with pytest.raises(UserError, match="all lora_B weights are zero"):
        base_load.attach(load(tiny_base("mistral"), "mistral", quantization="none"), tmp_path)


def test_an_adapter_weight_that_fits_no_module_is_refused(tiny_base, tmp_path) -> None:
    weights = adapter(load(tiny_base("mistral"), "mistral", quantization="none"), tmp_path)
    renamed = {key.replace("layers.0", "layers.9"): v for key, v in load_file(weights).items()}
    save_file(renamed, weights)
    with pytest.raises(UserError, match=r"layers\.9.*matches no module of MistralForCausalLM"):
        base_load.attach(load(tiny_base("mistral"), "mistral", quantization="none"), tmp_path)


def test_gradients_survive_an_evaluation(tiny_base) -> None:
    model = load(tiny_base("mistral"), "mistral", quantization="nf4")
    targets = target_modules("text", ("q_proj",), False)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    tokens = torch.tensor([[1, 5, 6, 7]])
    tuned.eval()
    with torch.no_grad():
        tuned(input_ids=tokens)
    tuned.train()
    tuned(input_ids=tokens, labels=tokens).loss.backward()
    gradients = {n: p.grad for n, p in tuned.named_parameters() if "lora_B" in n}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_a_folder_is_known_by_its_content(tiny_base, tmp_path) -> None:
    base = locate(str(tiny_base("mistral")), None)
    assert base.architecture == "MistralForCausalLM"
    assert base.revision == locate(str(tiny_base("mistral")), None).revision
    (tmp_path / "config.json").write_bytes((base.path / "config.json").read_bytes())
    weights = load_file(base.path / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert locate(str(tmp_path), None).revision != base.revision


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere", "test_data/nowhere/base"])
def test_a_missing_base_folder_is_refused_at_once(base: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        locate(base, None)


def test_a_folder_without_safetensors_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors weights"):
        locate(str(tmp_path), None)


def test_a_hub_that_is_switched_off_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        locate("mistralai/Mistral-7B-v0.1", None)


def test_a_hub_that_cannot_be_reached_is_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from loraline.errors import TryAgain

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    with pytest.raises(TryAgain, match="not in the local cache and the hub does not answer"):
        locate("mistralai/Mistral-7B-v0.1", None)


def test_mistrals_own_copy_of_the_weights_is_neither_counted_nor_fetched(
    tiny_base, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base("mistral"), folder)
    before = locate(str(folder), None).revision
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    assert locate(str(folder), None).revision == before
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in weight_files(folder)] == ["model-00001-of-00001.safetensors"]

    asked = []

    def fetched(base: str, **options: object) -> str:
        asked.append(options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    locate("mistralai/Mistral-7B-v0.3", "main")
    assert fnmatch("consolidated.safetensors", str(asked[0]["ignore_patterns"]))
