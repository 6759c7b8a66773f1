"""What an adapter was trained and measured with, and so must be served with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from loraline.errors import UserError

FILE = "contract.json"
WEIGHTS = "adapter_model.safetensors"
BASE_CONFIG = "base_config.json"
"""The base's config.json, which training keeps beside what it has trained."""


class Contract(BaseModel):
    """Travels with the adapter; evaluation, gate, manifest and server all read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Annotated[str, Field(pattern=r"^[^\-\x00-\x1f][^\x00-\x1f]*$")]
    """Base model: hub ID or folder; no option of a command, and one line."""

    base_revision: str
    """Commit on the hub, or `sha256:` and the digest of a folder's config and weights."""

    modality: Literal["text", "vision"]
    architecture: str
    """The base's class, as in its config.json."""

    prompt: str
    """Template of the user turn; `{question}` is replaced by the row's question."""

    prompt_uri: str = ""
    """The prompt's name and version in MLflow's registry, `prompts:/name/version`."""

    boxes: str | None = None
    """Convention of bounding boxes in the training rows, as loraline/data/boxes.py names it."""

    tools: bool = False
    """Whether training rows call tools, so that the server has to understand calls."""

    chat_template: str
    """Jinja template that made the tokens."""

    min_pixels: int | None
    max_pixels: int | None
    """Limits of an image in pixels after resizing; null for text."""

    max_images: int = 1
    """Most images of a row; a server takes no more in a request."""

    max_videos: int = 0
    """Most videos of a row."""

    max_length: int
    """Longest training row in tokens, answer included."""

    max_new_tokens: int
    """Longest answer in tokens."""

    max_positions: int | None = None
    """Positions that the base has, if its config says so."""

    dtype: Literal["bfloat16", "float16", "float32"]
    """Precision of the base in evaluation and serving."""

    quantization: Literal["none", "fp8"] = "none"
    """What the base's linear layers are rounded to in evaluation and serving, as in training: FP8
    with a scale for each output channel and each token, or nothing."""

    train: Literal["lora", "full"] = "lora"
    """Whether the weights are an adapter's, or a whole model's, served without its base."""

    r: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    """Names of the adapted modules, without their path."""

    export: Literal["adapter", "merged"] = "adapter"
    """What was measured and is to be served: the adapter itself, or merged into its base."""

    trains_vision: bool
    """Whether the adapter holds weights for the vision tower or its merger."""

    adapter_sha256: str
    """Digest of the adapter's safetensors file, or of a whole model's as `weights_digest` says."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not used: earlier releases read such a contract, too."""
        fields: dict[str, Any] = write(self)
        if not self.tools:
            fields.pop("tools", None)
        if self.train == "lora":
            fields.pop("train", None)
        if self.quantization == "none":
            fields.pop("quantization", None)
        return fields

    @property
    def is_folder(self) -> bool:
        """Whether the base is a folder rather than a hub model."""
        return self.base_revision.startswith("sha256:")

    def is_served_as(self, other: Contract) -> bool:
        """Whether another contract is about the same weights, served in the same way.

        Where the base lies and under which name the prompt is kept make no difference.
        """
        apart = {"base", "prompt_uri"}
        return self.model_dump(exclude=apart) == other.model_dump(exclude=apart)

    @property
    def max_model_len(self) -> int:
        """Room for the longest training row and an answer, in tokens, in steps of 256.

        No more than the base has positions, where row and answer fit in those.
        """
        tokens = self.max_length + self.max_new_tokens
        room = max(512, -(-tokens // 256) * 256)
        return max(tokens, min(room, self.max_positions or room))


def write(contract: Contract, adapter: Path) -> None:
    """Put the contract beside the adapter's weights."""
    (adapter / FILE).write_text(contract.model_dump_json(indent=2) + "\n")


def read(adapter: Path) -> Contract:
    """Read the contract of an adapter folder and hold the weights against its digest."""
    try:
        contract = Contract.model_validate_json((adapter / FILE).read_text())
        actual = weights_digest(adapter, contract.train)
    except FileNotFoundError as error:
        raise UserError(
            f"{adapter} is not an adapter of this pipeline: {error.filename} is missing"
        ) from error
    except ValidationError as error:
        raise UserError(
            f"{adapter / FILE} is not a contract of this version: {first_complaint(error)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{adapter / FILE} is not a contract: it is not UTF-8") from error
    if actual != contract.adapter_sha256:
        weights = adapter / WEIGHTS if contract.train == "lora" else f"the model in {adapter}"
        raise UserError(
            f"{weights} has digest {actual}, its contract says {contract.adapter_sha256}"
        )
    return contract


def model_files(folder: Path) -> list[Path]:
    """The config and the weights of a whole model; FileNotFoundError where one is missing."""
    config, weights = folder / "config.json", sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise FileNotFoundError(2, "no such file", str(folder / "model.safetensors"))
    return [config, *weights]


def weights_digest(folder: Path, train: str) -> str:
    """SHA-256 of an adapter's weights, or over those of the files that make up a whole model."""
    if train == "lora":
        return sha256(folder / WEIGHTS)
    lines = [f"{sha256(file)}  {file.name}\n" for file in model_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folder_digest(folder: Path, ignored: str = "") -> str:
    """SHA-256 over all files of an adapter folder, its contract, config and weights included.

    It is that of `sha256sum`'s lines, `DIGEST  PATH`, sorted by path. `ignored` names one file that
    does not count.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name != ignored
    }
    lines = [f"{sha256(files[name])}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def first_complaint(error: ValidationError) -> str:
    """The first thing wrong with a file, in one line; often the others follow from it."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
