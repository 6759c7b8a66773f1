import json
import time
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraline.base import architectures
from loraline.base import load as base_load
from loraline.base.locate import locate
from loraline.base.targets import target_modules
from loraline.contract import BASE_CONFIG
from loraline.errors import UserError
from loraline.serving import preflight

ALL = ("mistral", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def modality(architecture: str) -> str:
    return "text" if architecture == "mistral" else "vision"


def load(base: Path, architecture: str):
    located = locate(str(base), None)
    return base_load.load(located, modality(architecture), quantization="none", dtype="float32")


@pytest.fixture
def adapter(tiny_base, tmp_path: Path):
    """Make an adapter with real PEFT; options go to its LoraConfig."""

    def make(
        architecture: str = "mistral",
        *,
        merger: bool = False,
        tower: bool = False,
        random: bool = True,
        **options,
    ):
        base = tiny_base(architecture)
        targets = target_modules(modality(architecture), SEVEN, merger, tower)
        options = {"r": 4, "lora_alpha": 8, "target_modules": targets} | options
        model = load(base, architecture)
        model.config.name_or_path = "the/base"
        tuned = peft.get_peft_model(model, peft.LoraConfig(**options))
        for name, weight in tuned.named_parameters():
            if random and "lora_B" in name:
                torch.nn.init.normal_(weight)
        tuned.peft_config["default"].base_model_name_or_path = "the/base"
        tuned.save_pretrained(tmp_path)
        (tmp_path / BASE_CONFIG).write_bytes((base / "config.json").read_bytes())
        return tmp_path

    return make


def sentences(folder: Path, trains_vision: bool = False) -> list[str]:
    return [str(each) for each in preflight.findings(folder, "the/base", trains_vision)]


def test_dora_is_let_through_where_it_is_merged(adapter) -> None:
    folder = adapter(use_dora=True)
    assert preflight.findings(folder, "the/base", False, merged=True) == []
    message = sentences(folder)
    assert message[0].startswith("use_dora: is True, which vLLM refuses; set export: merged")
    assert any("lora_magnitude_vector: is no LoRA weight" in each for each in message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key, value: (key, value[:-1]), "has shape (127,), and the layer has 128 outputs"),
        (lambda key, value: (key, value * float("nan")), "holds NaN or infinity"),
        (lambda key, value: (key, value.to(torch.complex64)), "is of type C64"),
        (
            lambda key, value: (key.replace("layers.0", "layers.7"), value),
            "matches no linear layer of the base; the base has 3 layers",
        ),
    ],
)
def test_a_magnitude_that_does_not_fit_is_found(adapter, change, message: str) -> None:
    folder = adapter(use_dora=True)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    change_weights(
        folder,
        lambda kept: dict(change(k, v) if k == key else (k, v) for k, v in kept.items()),
    )
    (finding,) = preflight.findings(folder, "the/base", False, merged=True)
    assert message in str(finding)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(change(weights), folder / "adapter_model.safetensors")


def change_config(folder: Path, **settings: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("architecture", ALL)
def test_the_layers_known_from_the_config_are_the_models_own(tiny_base, architecture: str) -> None:
    base = tiny_base(architecture)
    real = {
        name: (module.in_features, module.out_features)
        for name, module in load(base, architecture).named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert architectures.linears(json.loads((base / "config.json").read_text())) == real


@pytest.mark.parametrize("architecture", ALL)
def test_a_trained_adapter_has_no_findings(adapter, architecture: str) -> None:
    assert sentences(adapter(architecture)) == []


@pytest.mark.parametrize(
    "options",
    [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}],
)
def test_what_vllm_serves_right_is_let_through(adapter, options: dict[str, object]) -> None:
    assert sentences(adapter(**options)) == []


@pytest.mark.parametrize("part", ["merger", "tower"])
@pytest.mark.parametrize("architecture", ALL[1:])
def test_vision_weights_need_a_server_that_is_told(adapter, architecture: str, part: str) -> None:
    folder = adapter(architecture, **{part: True})
    assert sentences(folder, trains_vision=True) == []
    assert "whose weights the server would drop in silence" in sentences(folder)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"use_dora": True},
            "use_dora: is True, which vLLM refuses; set export: merged, or train without DoRA",
        ),
        ({"bias": "all"}, "bias: is 'all'; train with bias: none"),
        ({"lora_bias": True}, "lora_bias: is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: is ['lm_head']"),
        ({"target_modules": ["q_proj", "lm_head"]}, "takes no adapter on the head"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: is 'olora'"),
        ({"random": False}, "all lora_B weights are zero"),
    ],
)
def test_what_vllm_refuses_is_found(adapter, options: dict[str, object], message: str) -> None:
    assert any(message in finding for finding in sentences(adapter(**options)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: is IA3, not LORA"),
        ({"r": 0}, "r: is 0"),
        ({"r": 1024}, "rank 1024 is not between 1 and 512"),
        ({"rank_pattern": {"q_proj": -1}}, "rank -1 is not between"),
        ({"lora_alpha": None}, "lora_alpha: is None"),
        ({"r": 8}, "has shapes (4, 128) and (128, 4), the base needs (8, 128) and (128, 8)"),
        ({"base_model_name_or_path": "other/base"}, "the contract says 'the/base'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_a_setting_that_does_not_fit_is_found(adapter, settings: dict, message: str) -> None:
    folder = adapter()
    change_config(folder, **settings)
    assert any(message in finding for finding in sentences(folder))


def renamed(old: str, new: str):
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def with_value(value: float, dtype: torch.dtype):
    def change(weights):
        first = next(iter(weights))
        weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
        weights[first][0, 0] = value
        return weights

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("layers.0", "layers.7"), "the base has 3 layers"),
        (renamed("base_model.model.", ""), "is no LoRA weight"),
        (renamed("lora_A.weight", "lora_A.default.weight"), "is no LoRA weight"),
        (renamed("self_attn", "attention"), "matches no linear layer of the base"),
        (with_value(float("nan"), torch.float32), "holds NaN or infinity"),
        (with_value(float("inf"), torch.bfloat16), "holds NaN or infinity"),
        (with_value(float("-inf"), torch.float16), "holds NaN or infinity"),
        (lambda weights: {k: v for k, v in weights.items() if "lora_B" not in k}, "lora_A alone"),
        (lambda weights: {k: v[:, :2].contiguous() for k, v in weights.items()}, "has shapes"),
        (lambda weights: {}, "holds no tensors"),
    ],
)
def test_a_weight_that_would_be_ignored_or_wrong_is_found(adapter, change, message: str) -> None:
    folder = adapter()
    change_weights(folder, change)
    assert any(message in finding for finding in sentences(folder))


def test_the_old_path_of_a_vision_models_layers_is_found(adapter) -> None:
    folder = adapter("qwen3-vl")
    change_weights(folder, renamed("model.model.language_model.layers", "model.model.layers"))
    assert any("must go through model.language_model" in finding for finding in sentences(folder))


def test_a_cut_file_a_pickle_alone_and_an_unknown_base_are_found(adapter) -> None:
    folder = adapter()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (finding,) = sentences(folder)
    assert finding.startswith("adapter_model.safetensors: cannot be read (")
    weights.rename(folder / "adapter_model.bin")
    assert "adapter_model.bin: is a pickle" in sentences(folder)[0]
    (folder / BASE_CONFIG).write_text('{"architectures": ["GptOss"]}')
    assert any("GptOss: is no known architecture" in finding for finding in sentences(folder))


def test_a_trainers_leftovers_beside_the_weights_do_no_harm_and_are_named(adapter) -> None:
    folder = adapter()
    for name in ("optimizer.pt", "training_args.bin", "README.md"):
        (folder / name).write_bytes(b"")
    assert sentences(folder) == []
    left = [path.name for path in preflight.leftovers(folder)]
    assert left == ["optimizer.pt", "training_args.bin"]


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b"5", b"null", b'{"a": {"dtype": "F32"}}'])
def test_a_broken_header_is_a_finding(adapter, header: bytes) -> None:
    folder = adapter()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (finding,) = sentences(folder)
    assert finding.startswith("adapter_model.safetensors: cannot be read (")


def test_weights_that_the_config_does_not_target_are_found(adapter) -> None:
    folder = adapter(target_modules=["q_proj", "v_proj"])
    change_config(folder, target_modules=["q_proj"])
    (finding,) = sentences(folder)
    assert "v_proj: has weights that vLLM applies, but is no target" in finding


def test_preflight_takes_milliseconds(adapter) -> None:
    folder = adapter("qwen3-vl")
    sentences(folder)
    taken = []
    for _ in range(5):
        started = time.process_time()
        sentences(folder)
        taken.append(time.process_time() - started)
    assert min(taken) < 0.05


@pytest.mark.parametrize(
    ("rank", "slots"), [(1, 1), (2, 8), (8, 8), (9, 16), (320, 320), (321, 512)]
)
def test_slots_have_the_smallest_rank_that_fits(rank: int, slots: int):
    assert preflight.max_lora_rank(rank) == slots


def test_a_rank_beyond_the_servers_largest_is_refused():
    with pytest.raises(UserError, match="rank 513 cannot be served: vLLM accepts up to 512"):
        preflight.max_lora_rank(513)
