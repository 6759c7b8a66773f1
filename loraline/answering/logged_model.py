"""The logged model that MLflow keeps of a training: what was written, and a way to ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import loraline
from loraline.answering import pyfunc
from loraline.contract import folder_digest
from loraline.tracking import tags

if TYPE_CHECKING:
    from loraline.contract import Contract

LIBRARY = Path(loraline.__file__).parent
"""The library travels with each logged model: MLflow loads one where loraline is not installed."""


def log(model: Path, contract: Contract, profile: str) -> None:
    """Log what was written as a model that the registry takes, its readable files beside it."""
    import mlflow

    logged = mlflow.pyfunc.log_model(
        name="adapter",
        python_model=pyfunc.__file__,
        artifacts={"adapter": str(model)},
        code_paths=[str(LIBRARY)],
        signature=pyfunc.signature(contract.max_new_tokens),
        model_config=pyfunc.CONFIG,
        pip_requirements=pyfunc.requirements(contract.modality),
        metadata={"base": contract.base, "base_revision": contract.base_revision, "r": contract.r},
        tags={tags.PROFILE: profile},
        model_type="lora-adapter" if contract.train == "lora" else "merged-model",
    )
    digest = folder_digest(model)
    mlflow.set_tags({tags.MODEL_ID: logged.model_id, tags.ADAPTER_DIGEST: digest})
    config = "adapter_config.json" if contract.train == "lora" else "config.json"
    for name in (config, "contract.json"):
        mlflow.log_artifact(str(model / name), "adapter")
