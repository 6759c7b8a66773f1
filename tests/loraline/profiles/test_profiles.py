from pathlib import Path

import pytest
import yaml

from loraline.errors import UserError
from loraline.profiles import catalog
from loraline.profiles.loading import load_profile

FOLDER = Path(__file__).parents[3] / "lora_profiles"
ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_the_folder_holds_the_promised_profiles() -> None:
    assert catalog.names(FOLDER) == [
        "aggressive",
        "debug",
        "high_capacity",
        "latex-ocr",
        "minimal",
        "qwen3-vl",
        "radiology",
        "smoke-grounding",
        "smoke-text",
        "smoke-video",
        "smoke-vision",
        "standard",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_loads_and_says_what_it_is_for(path: Path) -> None:
    load_profile(path.stem, FOLDER)
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
    profile = load_profile(name, FOLDER)
    assert (profile.r, profile.lora_alpha, profile.lora_dropout) == (rank, alpha, dropout)
    assert profile.target_modules == projections
    assert profile.base == "mistralai/Mistral-7B-v0.1"
    assert profile.learning_rate == 2e-4
    assert (profile.num_train_epochs, profile.max_length) == (1, 1024)
    assert (profile.rows_per_step, profile.memory) == (16, "auto")
    assert (profile.gate.max_eval_loss, profile.gate.max_perplexity) == (1.0, 2.0)


def test_vision_profiles_keep_their_values() -> None:
    radiology = load_profile("radiology", FOLDER)
    assert radiology.base == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (radiology.r, radiology.lora_alpha) == (64, 128)
    assert (radiology.learning_rate, radiology.merger_learning_rate) == (2e-4, 2e-5)
    qwen3 = load_profile("qwen3-vl", FOLDER)
    assert (qwen3.r, qwen3.lora_alpha, qwen3.lora_dropout) == (64, 128, 0.05)
    assert qwen3.learning_rate == 1e-5
    assert load_profile("debug", FOLDER).max_steps == 10


GOOD = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropuot": 0.1}, "unknown key 'dropuot' (accepted: answer_format, base"),
        (
            {"gate": {"max_loss": 1}},
            "unknown key 'gate.max_loss' (accepted: compare_on, limits, max_eval_loss",
        ),
        (
            {"prepare": {"group": "page"}},
            "unknown key 'prepare.group' (accepted: boxes, checks, columns",
        ),
        (
            {"prepare": {"sources": ["faq", {"uri": "exam.csv", "colums": {}}]}},
            "unknown key 'prepare.sources.1.colums' (accepted: boxes, columns, encoding",
        ),
        ({"prepare": {"sources": [{"split": "test"}]}}, "key 'prepare.sources.0.uri' is missing"),
        ({"prepare": {"checks": {"leaks": "no"}}}, "prepare.checks.leaks: 'no' is refused"),
        ({"r": 0}, "r: 0 is refused, input should be greater than or equal to 1"),
        ({"r": 513}, "r: 513 is refused, input should be less than or equal to 512"),
        ({"lora_dropout": 1}, "lora_dropout: 1 is refused, input should be less than 1"),
        ({"target_modules": ["lm_head"]}, "input should be 'q_proj', 'k_proj'"),
        ({"target_modules": []}, "target_modules: [] is refused"),
        ({"modality": "audio"}, "input should be 'text' or 'vision'"),
        ({"modality": "vision"}, "modality: vision needs min_pixels and max_pixels"),
        ({"min_pixels": 100}, "need modality: vision"),
        ({"tower_learning_rate": 1e-5}, "need modality: vision"),
        ({"target_modules": None}, "key 'target_modules' is missing"),
        ({"tune": {"language": False}}, "tune leaves nothing to learn: language is false"),
        ({"tune": {"tower": True}}, "unknown key 'tune.tower' (accepted: language, merger, vision"),
        (
            {"tune": {"merger": False}, "merger_learning_rate": 1e-5},
            "merger_learning_rate is a rate for what tune.merger: false leaves alone",
        ),
        ({"tune": {"merger": True}}, "tower_learning_rate and tune need modality: vision"),
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
        (
            {"quantization": "fp8", "use_dora": True, "export": "merged"},
            "use_dora needs quantization: nf4 or none",
        ),
        ({"quantization": "fp8", "export": "merged"}, "quantization: fp8 needs export: adapter"),
        ({"quantization": "fp8", "serve_dtype": "float16"}, "fp8 needs serve_dtype: bfloat16"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora' is refused"),
        ({"neftune_noise_alpha": 0}, "neftune_noise_alpha: 0 is refused, input should be greater"),
        ({"registered_model": "a/b"}, "registered_model: 'a/b' is refused"),
        ({"registered_model": "fm-lora.lock"}, "are those of the registry's locks"),
        ({"r": None}, "r: None is refused"),
        (
            {"gate": {"max_perplexity": float("inf")}},
            "gate.max_perplexity: inf is refused, write null for a limit that is not checked",
        ),
        (
            {"learning_rate": float("inf")},
            "learning_rate: inf is refused, input should be a finite",
        ),
        (
            {"split": {"test": "lots"}},
            "mine.yaml: split.test: 'lots' is refused, write a share of up to 0.4 or a whole "
            "number of rows",
        ),
        ({"split": {"validation": None}}, "yaml: split.validation: None is refused, write a share"),
        ({"split": {"test": 0.7}}, "mine.yaml: split.test: 0.7 is refused, write a share of up"),
        (
            {"prepare": {"limits": {"fps": "a", "frames": -1}}},
            "mine.yaml: prepare.limits.fps: 'a' is refused, expected a number; "
            "prepare.limits.frames: -1 is refused, input should be greater than 0",
        ),
        (
            {"prepare": {"limits": {"fps": -1.5}}},
            "mine.yaml: prepare.limits.fps: -1.5 is refused, input should be greater than 0",
        ),
        ({1: 2}, "key '1' has to be a text"),
        ({"gate": {1: 2}}, "key 'gate.1' has to be a text"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GOOD | change))
    with pytest.raises(UserError) as refusal:
        load_profile("mine", tmp_path)
    assert message in str(refusal.value)
    assert "mine.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown profile 'standrad'; accepted: aggressive, debug"):
        load_profile("standrad", FOLDER)


def test_a_profile_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match="unknown profile"):
        load_profile("../outside", tmp_path / "inside")


@pytest.mark.parametrize("content", ["r: [", "", "- a", "just text"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_profile("mine", tmp_path)


def write_profile(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def test_a_profile_extends_another_and_says_only_what_differs(tmp_path: Path) -> None:
    write_profile(
        tmp_path,
        "standard",
        "{r: 8, lora_alpha: 16, target_modules: [q_proj], gate: {min_rows: 30, min_bleu: 5}}",
    )
    write_profile(tmp_path, "team", "{extends: standard, registered_model: ours, lora_alpha: 32}")
    write_profile(tmp_path, "mine", "{extends: team, r: 16, gate: {min_bleu: 50}}")
    mine = load_profile("mine", tmp_path)
    assert (mine.r, mine.lora_alpha, mine.registered_model) == (16, 32, "ours")
    assert (mine.gate.min_rows, mine.gate.min_bleu) == (30, 50)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "extends: nobody",
            "mine.yaml: extends an unknown profile 'nobody'; accepted: mine, other",
        ),
        ("extends: mine", "extends goes in a circle: mine extends mine"),
        ("extends: other", "extends goes in a circle: mine extends other extends mine"),
        ("extends: [other]", "mine.yaml: extends: ['other'] is refused, name one profile"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    write_profile(tmp_path, "mine", text)
    write_profile(tmp_path, "other", "extends: mine")
    with pytest.raises(UserError) as error:
        load_profile("mine", tmp_path)
    assert sentence in str(error.value)


def test_values_set_for_one_run_count_instead_of_the_files(tmp_path: Path) -> None:
    overrides = ("learning_rate=1e-4", "gate.min_rows=10", "target_modules=[v_proj]")
    profile = load_profile("standard", FOLDER, overrides)
    assert (profile.learning_rate, profile.gate.min_rows) == (1e-4, 10)
    assert profile.target_modules == ("v_proj",)
    before = load_profile("standard", FOLDER)
    assert profile.gate.max_perplexity == before.gate.max_perplexity


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learning_rate", "--set 'learning_rate' is not KEY=VALUE, such as learning_rate=1e-4"),
        ("=3", "--set '=3' is not KEY=VALUE"),
        ("lr=3", "standard.yaml with lr=3: unknown key 'lr' (accepted: answer_format"),
        ("r=0", "standard.yaml with r=0: r: 0 is refused"),
        ("r=[", "--set 'r=[': '[' is not a value of YAML"),
        (
            "gate={min_rows: 10, min_rows: 1}",
            "'{min_rows: 10, min_rows: 1}' is not a value of YAML (key 'min_rows' is given twice)",
        ),
        ("gate.min_bleu=high", "gate.min_bleu: 'high' is refused"),
    ],
)
def test_values_that_cannot_be_set_are_refused(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_profile("standard", FOLDER, (override,))
    assert sentence in str(error.value)


def test_the_current_folders_profiles_come_before_the_users_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    recipe = "{lora_alpha: 1, target_modules: [q_proj], r: %d}"
    assert load_profile("standard").r == load_profile("standard", FOLDER).r
    write_profile(tmp_path / "config/loraline/profiles", "standard", recipe % 3)
    write_profile(tmp_path / "config/loraline/profiles", "mine", recipe % 4)
    assert (load_profile("standard").r, load_profile("mine").r) == (3, 4)
    write_profile(tmp_path / "lora_profiles", "standard", recipe % 5)
    assert (load_profile("standard").r, load_profile("mine").r) == (5, 4)
    assert {"standard", "mine", "smoke-text"} <= set(catalog.names())
