"""What a training leaves: an adapter as PEFT writes it, or a whole model as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base import merging
from loraline.contract import BASE_CONFIG
from loraline.training import adapted, pissa

if TYPE_CHECKING:
    from torch import Tensor

    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile
    from loraline.training.trainer import PackedTrainer


def write(
    trainer: PackedTrainer,
    recipe: Profile,
    base: Base,
    learned: Mapping[str, Tensor],
    folder: Path,
) -> Path:
    """Write what has `learned`, whole and by name, in safetensors; the base's config beside it."""
    if recipe.train == "full":
        write_model(trainer.model, recipe, learned, folder)
        merging.copy_tokenizer(base, recipe.modality, folder)
    else:
        trainer.model.peft_config["default"].base_model_name_or_path = recipe.base
        if trainer.initial is not None:
            pissa.save(trainer.model, trainer.initial, folder)
        else:
            trainer.model.save_pretrained(folder, state_dict=dict(learned))
        # PEFT's model card is an empty form; what it would say is in the contract.
        (folder / "README.md").unlink()
    (folder / BASE_CONFIG).write_text(json.dumps(base.config, indent=2) + "\n")
    return folder


def write_model(model: Any, recipe: Profile, learned: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model in the precision that it is measured and served in.

    `learned` are all its parameters, those that stood still among them.
    """
    import torch

    weights = {n: w.to(getattr(torch, recipe.serve_dtype)) for n, w in learned.items()}
    adapted.causal(model).save_pretrained(folder, state_dict=weights)
    # transformers writes down the type that the model had in training.
    config = folder / "config.json"
    content = json.loads(config.read_text()) | {"dtype": recipe.serve_dtype}
    config.write_text(json.dumps(content, indent=2) + "\n")
