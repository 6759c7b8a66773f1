from pathlib import Path

import pytest
import yaml

from loraline import profiles
from loraline.errors import UserError

FOLDER = Path(__file__).parents[2] / "lora_profiles"
ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_the_folder_holds_the_promised_profiles() -> None:
    assert profiles.names(FOLDER) == [
        "aggressive",
        "debug",
        "high_capacity",
        "latex-ocr",
        "minimal",
        "qwen3-vl",
        "radiology",
        "smoke-text",
        "smoke-vision",
        "standard",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_loads_and_says_what_it_is_for(path: Path) -> None:
    profiles.load(path.stem, FOLDER)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "dropout", "projections"),
    [
        ("minimal", 4, 8, 0.05, ("q_proj", "v_proj")),
        ("standard", 8, 16, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("aggressive", 16, 32, 0.05, ALL_SEVEN),
        ("high_capacity", 32, 64, 0.1, ALL_SEVEN),
    ],
)
def test_the_ladder_keeps_its_values(
    name: str, rank: int, alpha: int, dropout: float, projections: tuple[str, ...]
) -> None:
    profile = profiles.load(name, FOLDER)
    assert (profile.r, profile.lora_alpha, profile.lora_dropout) == (rank, alpha, dropout)
    assert profile.target_modules == projections
    assert profile.base == "mistralai/Mistral-7B-v0.1"
    assert profile.learning_rate == 2e-4
    assert (profile.num_train_epochs, profile.max_length) == (1, 1024)
    assert (profile.rows_per_step, profile.memory) == (16, "auto")
    assert (profile.gate.max_eval_loss, profile.gate.max_perplexity) == (1.0, 2.0)


def test_vision_profiles_keep_their_values() -> None:
    radiology = profiles.load("radiology", FOLDER)
    assert radiology.base == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (radiology.r, radiology.lora_alpha) == (64, 128)
    assert (radiology.learning_rate, radiology.merger_learning_rate) == (2e-4, 2e-5)
    qwen3 = profiles.load("qwen3-vl", FOLDER)
    assert (qwen3.r, qwen3.lora_alpha, qwen3.lora_dropout) == (64, 128, 0.05)
    assert qwen3.learning_rate == 1e-5
    assert profiles.load("debug", FOLDER).max_steps == 10


GOOD = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dropuot": 0.1}, "unknown key 'dropuot' (accepted: answer_format, base"),
        (
            {"gate": {"max_loss": 1}},
            "unknown key 'gate.max_loss' (accepted: compare_on, max_eval_loss",
        ),
        ({"r": 0}, "r: 0 is refused, input should be greater than or equal to 1"),
        ({"r": 513}, "r: 513 is refused, input should be less than or equal to 512"),
        ({"lora_dropout": 1}, "lora_dropout: 1 is refused, input should be less than 1"),
        ({"target_modules": ["lm_head"]}, "input should be 'q_proj', 'k_proj'"),
        ({"target_modules": []}, "target_modules: [] is refused"),
        ({"modality": "audio"}, "input should be 'text' or 'vision'"),
        ({"modality": "vision"}, "modality: vision needs min_pixels and max_pixels"),
        ({"min_pixels": 100}, "need modality: vision"),
        ({"tower_learning_rate": 1e-5}, "need modality: vision"),
        ({"use_dora": True}, "use_dora needs export: merged, because vLLM refuses DoRA adapters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights needs quantization: none"),
        (
            {"init_lora_weights": "pissa", "quantization": "none", "use_rslora": True},
            "leave use_dora and use_rslora out",
        ),
        (
            {"init_lora_weights": "pissa", "quantization": "none", "r": 257},
            "init_lora_weights doubles the rank, and vLLM serves up to 512: r is 257",
        ),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora' is refused"),
        ({"neftune_noise_alpha": 0}, "neftune_noise_alpha: 0 is refused, input should be greater"),
        ({"registered_model": "a/b"}, "registered_model: 'a/b' is refused"),
        ({"r": None}, "r: None is refused"),
        (
            {"gate": {"max_perplexity": float("inf")}},
            "gate.max_perplexity: inf is refused, write null for a limit that is not checked",
        ),
        (
            {"learning_rate": float("inf")},
            "learning_rate: inf is refused, input should be a finite",
        ),
        ({1: 2}, "key '1' has to be a text"),
        ({"gate": {1: 2}}, "key 'gate.1' has to be a text"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(UserError) as refusal:
        profiles.load("mine", tmp_path)
    assert told in str(refusal.value)
    assert "mine.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown profile 'standrad'; accepted: aggressive, debug"):
        profiles.load("standrad", FOLDER)


def test_a_profile_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match="unknown profile"):
        profiles.load("../outside", tmp_path / "inside")


@pytest.mark.parametrize("content", ["r: [", "", "- a", "just text"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        profiles.load("mine", tmp_path)
