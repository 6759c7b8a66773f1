"""Named training recipes: one YAML file a profile, the file's stem is its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from loraline.errors import UserError

FOLDER = Path("lora_profiles")

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Strict(BaseModel):
    """Nothing is guessed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gate(Strict):
    """Limits that a candidate must keep on the held-out rows; a limit of null is not checked."""

    max_eval_loss: PositiveFloat = 1.0
    """Mean negative log-likelihood a target token, in nats."""

    max_perplexity: PositiveFloat = 2.0
    """exp of the eval loss."""

    min_bleu: Annotated[float, Field(ge=0, le=100)] | None = None
    """Corpus BLEU, 0 to 100."""

    max_levenshtein: Annotated[float, Field(ge=0, le=1)] | None = None
    """Normalised edit distance, 0 to 1."""


class Profile(Strict):
    """One training recipe. Keys are named as in PEFT and TRL where they are passed through."""

    base: str = Field("mistralai/Mistral-7B-v0.1", min_length=1)
    """Base model: a hub ID, or a folder relative to the repository's root."""

    base_revision: str | None = None
    """Hub commit, tag or branch of the base; null is the hub's default branch."""

    modality: Literal["text", "vision"] = "text"
    """What a row holds: text alone, or one image and text."""

    registered_model: str = Field("mistral-7b-lora", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name in the model registry, and in the experiment's run names."""

    data: str | None = None
    """Folder that prepare_data reads when no --data is given."""

    answer_format: Literal["prose", "latex"] = "prose"
    """How answers are canonicalised before they are compared."""

    r: Annotated[int, Field(ge=1, le=512)]
    """LoRA rank; 512 is the largest that vLLM serves."""

    lora_alpha: PositiveInt
    """LoRA scaling numerator: the update is scaled by lora_alpha / r."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout before the LoRA matrices."""

    target_modules: Annotated[tuple[Projection, ...], Field(min_length=1)]
    """Projections of the language model that get an adapter."""

    merger_learning_rate: PositiveFloat | None = None
    """Also adapt the vision merger (the projector), at this learning rate; null leaves it alone."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""

    warmup_steps: NonNegativeInt = 20
    """Optimizer steps of linear warm-up."""

    num_train_epochs: PositiveFloat = 1
    """Passes over the training rows."""

    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""

    early_stopping_patience: PositiveInt | None = None
    """Stop after this many epochs without a lower validation loss; null trains to the end."""

    rows_per_step: PositiveInt = 16
    """Rows an optimizer step learns from, on all GPUs together."""

    memory: Literal["auto", "fast", "small"] = "auto"
    """`fast` spends memory on speed, `small` speed on memory; `auto` is the fastest that fits."""

    max_length: Annotated[int, Field(ge=16)] = 1024
    """Longest row in tokens, image and answer included; longer rows are counted out, never cut."""

    max_new_tokens: PositiveInt = 256
    """Longest answer in tokens, in evaluation and serving."""

    min_pixels: PositiveInt | None = None
    """Smallest image in pixels after resizing; required for vision."""

    max_pixels: PositiveInt | None = None
    """Largest image in pixels after resizing; required for vision. The main memory knob."""

    serve_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the base when it is evaluated and served."""

    seed: NonNegativeInt = 0
    """Seed of the adapter's initial weights and of the order of rows."""

    gate: Gate = Gate()
    """Limits that a candidate must keep."""

    @model_validator(mode="after")
    def pixels_belong_to_vision(self) -> Self:
        limits = (self.min_pixels, self.max_pixels)
        if self.modality == "text":
            if limits != (None, None) or self.merger_learning_rate is not None:
                raise ValueError(
                    "min_pixels, max_pixels and merger_learning_rate need modality: vision"
                )
        elif self.min_pixels is None or self.max_pixels is None:
            raise ValueError("modality: vision needs min_pixels and max_pixels")
        elif self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


def names(folder: Path = FOLDER) -> list[str]:
    """Names of all profiles, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Profile:
    """Read one profile; a UserError names what was wrong and what would be accepted."""
    path = folder / f"{name}.yaml"
    if name not in names(folder):
        accepted = ", ".join(names(folder)) or f"none, no profiles in {folder.resolve()}"
        raise UserError(f"unknown profile {name!r}; accepted: {accepted}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, found {content!r}")
    try:
        return Profile(**content)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(complaints(error))}") from error


def complaints(error: ValidationError) -> list[str]:
    """One clause for each thing wrong: the key, the value, and what is accepted."""
    clauses = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            model = Gate if key.startswith("gate.") else Profile
            accepted = ", ".join(sorted(model.model_fields))
            clauses.append(f"unknown key {key!r} (accepted: {accepted})")
        elif item["type"] == "missing":
            clauses.append(f"key {key!r} is missing")
        elif item["type"] == "value_error":
            clauses.append(item["msg"].removeprefix("Value error, "))
        else:
            clauses.append(f"{key}: {item['input']!r} is refused, {lower_first(item['msg'])}")
    return clauses


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
