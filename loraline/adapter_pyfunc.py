"""The registered model: an adapter that answers with the prompt it was trained with.

MLflow runs this file to load a version (models from code), so nothing is pickled.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext


class AdapterModel(PythonModel):
    """Takes questions, or base64-encoded images for a vision adapter; returns answers."""

    def load_context(self, context: PythonModelContext) -> None:
        from loraline import contract, models
        from loraline.encoding import Encoder

        adapter = Path(context.artifacts["adapter"])
        self.contract = contract.read(adapter)
        base = models.locate_measured(self.contract)
        self.encoder = Encoder.of(self.contract, base)
        model = models.load(base, self.contract.modality, quantize=False, dtype=self.contract.dtype)
        self.model = models.attach(model, adapter)

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        from loraline import generation, records

        asked = [
            records.from_prompt(self.contract.prompt, "", "", base64.b64decode(item))
            if self.contract.modality == "vision"
            else records.from_prompt(self.contract.prompt, item, "")
            for item in model_input
        ]
        rows = [self.encoder.encode(record) for record in asked]
        answers = generation.answers(
            self.model, self.encoder, rows, self.contract.max_new_tokens, lambda units, remark: None
        )
        return [answer.text for answer in answers]


mlflow.models.set_model(AdapterModel())
