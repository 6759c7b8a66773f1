"""The registered model: an adapter that answers with the prompt it was trained with.

MLflow runs this file to load a version (models from code), so nothing is pickled. Load it with
`model_config={"quantize": True}` to hold the base in 4-bit NF4 as in training.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from loraline.errors import UserError

# An example would run the model when it is logged.
warnings.filterwarnings("ignore", ".*An input example was not provided")

CONFIG = {"quantize": False}
"""Settings of loading, with their defaults."""


def signature(max_new_tokens: int) -> ModelSignature:
    """One text in, one text out; `max_new_tokens` is the contract's longest answer in tokens."""
    text = Schema([ColSpec("string")])
    longest = ParamSpec("max_new_tokens", "long", max_new_tokens)
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema([longest]))


class AdapterModel(PythonModel):
    """Takes questions, or base64-encoded images for a vision adapter; returns answers."""

    # MLflow advises type hints, which would replace the signature, and with it the parameters.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        from loraline import contract, merging, models
        from loraline.encoding import Encoder

        settings = CONFIG | (context.model_config or {})
        adapter = Path(context.artifacts["adapter"])
        self.contract = contract.read(adapter)
        base = models.locate_measured(self.contract)
        self.encoder = Encoder.of(self.contract, base)
        model = models.load(
            base,
            self.contract.modality,
            quantize=bool(settings["quantize"]),
            dtype=self.contract.dtype,
        )
        attached = models.attach(model, adapter)
        merged = self.contract.export == "merged" and not settings["quantize"]
        self.model = merging.merge(attached) if merged else attached

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers to a table of one column, or to a list."""
        from loraline import generation

        longest = self.contract.max_new_tokens
        wanted = (params or {}).get("max_new_tokens", longest)
        if wanted < 1:
            raise UserError(f"max_new_tokens is {wanted}, and an answer has at least one token")
        rows = [self.encoder.encode(record) for record in self.asked(inputs(model_input))]
        answers = generation.answers(
            self.model,
            self.encoder,
            rows,
            min(wanted, longest),
            lambda units, remark: None,
        )
        return [answer.text for answer in answers]

    def asked(self, given: Iterable[str]) -> list[Any]:
        """The training's prompt around each question or image."""
        from loraline import records

        prompt = self.contract.prompt
        if self.contract.modality == "text":
            return [records.from_prompt(prompt, question, "") for question in given]
        return [records.from_prompt(prompt, "", "", decoded(image)) for image in given]


def inputs(model_input: Any) -> list[str]:
    """The texts of a list, or of a table's only column; a UserError for anything else."""
    if hasattr(model_input, "iloc"):
        if len(model_input.columns) != 1:
            raise UserError(f"the model takes one column, and was given {len(model_input.columns)}")
        model_input = model_input.iloc[:, 0]
    found = list(model_input)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"input {number} is {text!r}, and has to be a text")
    return found


def decoded(image: str) -> bytes:
    """The bytes of an image in base64, with or without the head of a data URL."""
    try:
        return base64.b64decode(image.rpartition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise UserError(f"a vision adapter takes images in base64: {error}") from error


mlflow.models.set_model(AdapterModel())
