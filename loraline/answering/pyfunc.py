"""The registered model: an adapter that answers with the prompt it was trained with.

MLflow runs this file to load a version (models from code), so nothing is pickled. Load it with
`model_config={"quantize": True}` to hold the base in 4-bit NF4 as in training.
"""

from __future__ import annotations

import base64
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.base.encoding import Row

# An input example would run the model when it is logged.
warnings.filterwarnings("ignore", ".*An input example was not provided")

CONFIG = {"quantize": False}
"""Settings of loading, with their defaults: what `model_config` may hold."""


def signature(max_new_tokens: int) -> ModelSignature:
    """One text in, one text out; `max_new_tokens` is the contract's longest answer in tokens."""
    text = Schema([ColSpec("string")])
    longest = ParamSpec("max_new_tokens", "long", max_new_tokens)
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema([longest]))


def requirements(modality: str) -> list[str]:
    """What loading the model needs from PyPI, in the versions that it was trained with."""
    names = ["torch", "transformers", "peft", "bitsandbytes", "pillow", "safetensors", "pydantic"]
    if modality == "vision":
        names.append("torchvision")
    # PyPI knows no builds such as 2.9.0+cpu.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


class AdapterModel(PythonModel):
    """Takes questions, or base64-encoded images for a vision adapter; returns answers."""

    # MLflow advises type hints, which would replace the signature, and with it the parameters.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        from loraline import contract
        from loraline.base import locate, merging
        from loraline.base.encoding import Encoder
        from loraline.base.load import attach, load, trained_base

        # MLflow has left out, with a warning, what CONFIG does not name.
        settings = CONFIG | (context.model_config or {})
        quantize = settings["quantize"]
        if not isinstance(quantize, bool):
            raise UserError(f"model_config 'quantize' is {quantize!r}; accepted: True, False")
        adapter = Path(context.artifacts["adapter"])
        self.contract = contract.read(adapter)
        base = locate.locate_measured(self.contract)
        self.encoder = Encoder.of(self.contract, base)
        whole = self.contract.train == "full"
        model = load(
            trained_base(self.contract, base, adapter) if whole else base,
            self.contract.modality,
            quantization="nf4" if quantize else self.contract.quantization,
            dtype=self.contract.dtype,
        )
        if whole:
            self.model = model.eval()
            return
        attached = attach(model, adapter)
        merged = self.contract.export == "merged" and not quantize
        self.model = merging.merge(attached) if merged else attached

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers to a table of one column, or to a list."""
        from loraline.answering import hf

        longest = self.contract.max_new_tokens
        requested = (params or {}).get("max_new_tokens")
        requested = longest if requested is None else requested
        if requested < 1:
            raise UserError(f"max_new_tokens is {requested}, and an answer has at least one token")
        longest = min(requested, longest)
        numbered = enumerate(inputs(model_input))
        rows = [self.encoded_input(number, text, longest) for number, text in numbered]
        answers = hf.answers(self.model, self.encoder, rows, longest, lambda units, remark: None)
        return [answer.text for answer in answers]

    def encoded_input(self, number: int, text: str, longest: int) -> Row:
        """One input in the training's prompt, as tokens.

        Raises UserError for what the server would refuse as well: an image that it cannot read, or
        a prompt that leaves no room for the longest answer.
        """
        from loraline import records

        if self.contract.modality == "text":
            row = self.encoder.encode(records.from_prompt(self.contract.prompt, text, ""))
        else:
            row = self.encoded_image(number, text)
        room = self.contract.max_model_len - longest
        if len(row.prompt) > room:
            raise UserError(
                f"input {number} is too long: {len(row.prompt)} tokens with its prompt, and at "
                f"most {room} leave room for an answer of {longest}"
            )
        return row

    def encoded_image(self, number: int, text: str) -> Row:
        """One image in the training's prompt, as tokens."""
        from PIL import Image, UnidentifiedImageError

        from loraline import records

        image = decoded(number, text)
        try:
            return self.encoder.encode(records.from_prompt(self.contract.prompt, "", "", image))
        except UnidentifiedImageError as error:
            raise UserError(
                f"input {number} is no image: expected a file such as PNG or JPEG, in base64"
            ) from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"input {number} is an image that cannot be read: {error}") from error


def inputs(model_input: Any) -> list[str]:
    """The texts of a list, or of a table's only column; a UserError for anything else."""
    if hasattr(model_input, "iloc"):
        if len(model_input.columns) != 1:
            raise UserError(f"the model takes one column, and was given {len(model_input.columns)}")
        model_input = model_input.iloc[:, 0]
    questions = list(model_input)
    for number, text in enumerate(questions):
        if not isinstance(text, str):
            raise UserError(f"input {number} is {text!r}, and has to be a text")
    return questions


def decoded(number: int, text: str) -> bytes:
    """The bytes of an image in base64, in one line or many, with the head of a data URL or not."""
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except ValueError as error:
        raise UserError(
            f"input {number} is not base64, and a vision adapter takes images in base64: {error}"
        ) from error


mlflow.models.set_model(AdapterModel())
