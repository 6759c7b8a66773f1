"""A trained and measured candidate without the training: real runs, real logged model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import yaml

GOOD = {
    "base_eval_loss": 3.69,
    "base_bleu": 10.0,
    "tuned_bleu": 70.0,
    "base_levenshtein": 0.8,
    "tuned_levenshtein": 0.1,
    "base_exact_match": 0.0,
    "tuned_exact_match": 0.5,
    "base_perplexity": 40.0,
    "tuned_perplexity": 1.5,
    "tuned_eval_loss": 0.405,
    "rows": 20.0,
    "gain_over_base_levenshtein": 0.7,
    "gain_over_base_levenshtein_low": 0.6,
    "gain_over_base_bleu_low": 50.0,
}

MEASURED = {"tokenizer": "t", "template": "m", "rows": "r"}

Candidate = Callable[..., str]
Precision = Literal["bfloat16", "float16", "float32"]


def make_adapter(
    folder: Path, *, rank: int = 8, weight: float = 1.0, dtype: Precision = "bfloat16"
) -> Path:
    """An adapter folder as train_qlora leaves it, with small weights."""
    import torch
    from safetensors.torch import save_file

    from loraline import contract
    from loraline.serving import adapter_config

    folder.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{prefix}.lora_A.weight": torch.ones(rank, 16),
            f"{prefix}.lora_B.weight": torch.full((16, rank), weight),
        },
        folder / contract.WEIGHTS,
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / adapter_config.CONFIG).write_text(json.dumps(settings))
    base = {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "max_position_embeddings": 4096,
    }
    (folder / contract.BASE_CONFIG).write_text(json.dumps(base))
    contract.write(
        contract.Contract(
            base="test_data/text/base",
            base_revision="sha256:" + "0" * 64,
            modality="text",
            architecture="MistralForCausalLM",
            prompt="{question}",
            chat_template="{{ messages }}",
            min_pixels=None,
            max_pixels=None,
            max_length=40,
            max_new_tokens=32,
            dtype=dtype,
            r=rank,
            lora_alpha=16,
            target_modules=("q_proj",),
            trains_vision=False,
            adapter_sha256=contract.sha256(folder / contract.WEIGHTS),
        ),
        folder,
    )
    return folder


@pytest.fixture
def candidate(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Candidate:
    """Log a training run with its adapter and an evaluate run; return the latter's ID.

    The logged model has no copy of the library: to write the 200 files twice takes a third of a
    test's time, and no test asks a candidate.
    """
    import mlflow

    from loraline import contract
    from loraline.answering import logged_model
    from loraline.profiles.loading import load_profile
    from loraline.tracking import identity, runs, store
    from loraline.tracking import tags as tracking_tags

    library = tmp_path_factory.mktemp("library") / "loraline"
    library.mkdir()
    (library / "__init__.py").touch()
    monkeypatch.setattr(logged_model, "LIBRARY", library)

    def make(
        profile: str = "standard",
        name: str = "one",
        weight: float = 1.0,
        tags: Mapping[str, str] | None = None,
        without: str = "",
        **metrics: float,
    ) -> str:
        client = store.connect()
        with runs.open_run("prepare_data", name="data", fingerprint=f"p{name}") as data:
            mlflow.set_tag(tracking_tags.DATASET_DIGEST, "d" * 64)
            mlflow.log_param(tracking_tags.DATASET_DIGEST, "d" * 64)
        with runs.open_run(
            "train_qlora",
            name=f"lora-{name}",
            fingerprint=f"t{name}",
            upstream=client.get_run(data.info.run_id),
            tags={tracking_tags.PROFILE: profile},
        ) as train:
            mlflow.set_tag(tracking_tags.DATASET_DIGEST, "d" * 64)
            recipe = load_profile(profile)
            resolved = recipe.model_dump(mode="json")
            mlflow.log_dict(resolved, "profile.json")
            mlflow.set_tag(tracking_tags.PROFILE_DIGEST, identity.values_digest(resolved))
            folder = workplace / name / "adapter"
            adapter = make_adapter(folder, weight=weight, dtype=recipe.serve_dtype)
            logged_model.log(adapter, contract.read(adapter), profile)
        train_run = client.get_run(train.info.run_id)
        with runs.open_run(
            "evaluate", name="evaluate", fingerprint=f"e{name}", upstream=train_run
        ) as run:
            measured = {key: value for key, value in (GOOD | metrics).items() if key != without}
            mlflow.log_metrics(measured)
            prints = {f"{tracking_tags.MEASURED}.{key}": value for key, value in MEASURED.items()}
            mlflow.set_tags({k: v for k, v in (prints | (tags or {})).items() if v})
            for read, key in (
                (train_run, tracking_tags.ADAPTER_DIGEST),
                (client.get_run(data.info.run_id), tracking_tags.DATASET_DIGEST),
            ):
                mlflow.set_tag(key, read.data.tags[key])
        return str(run.info.run_id)

    return make


QUICK = {"num_train_epochs": 1, "max_steps": 3, "warmup_steps": 1}


@pytest.fixture
def quick(workplace: Path):
    """Profiles like smoke-text but for the given keys, that train three steps."""
    kept = (workplace / "lora_profiles" / "smoke-text.yaml").read_text()
    (workplace / "lora_profiles").unlink()
    (workplace / "lora_profiles").mkdir()

    def make(name: str, **changes: object) -> str:
        content = yaml.safe_load(kept) | QUICK | changes
        (workplace / "lora_profiles" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return name

    return make


@pytest.fixture
def data_run(step, quick, workplace: Path) -> str:
    """A prepare_data run of the text test data."""
    step("prepare_data", "--profile", quick("data"))
    return (workplace / "outputs" / "run-id").read_text()


@pytest.fixture
def train(step, workplace: Path) -> Callable[..., str]:
    """Train on a prepare_data run with a profile; return the training run's ID."""

    def run(data_run: str, profile: str, *options: str) -> str:
        result = step("train_qlora", "--run-id", data_run, "--profile", profile, *options)
        assert result.exit_code == 0, result.output
        return (workplace / "outputs" / "run-id").read_text()

    return run
