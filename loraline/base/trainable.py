"""Which bases a profile can be trained on and served with; asked before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline.base.architectures import NOT_TRAINED, TEXT, VISION, architecture_of, projections
from loraline.errors import UserError

if TYPE_CHECKING:
    from loraline.profiles.profile import Profile


def check_base(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Refuse, before training, a base whose adapters the server is not known to apply.

    Towers and mergers of all VISION are applied, with the server's flag for them.
    """
    architecture = architecture_of(config)
    fitting = VISION if recipe.modality == "vision" else TEXT
    if architecture not in fitting:
        remark = f" ({NOT_TRAINED[architecture]})" if architecture in NOT_TRAINED else ""
        raise UserError(
            f"a base of class {architecture} cannot be trained with modality: {recipe.modality}, "
            f"because its training and the size of its server are not known here{remark}; "
            f"accepted: {', '.join(sorted(fitting))}"
        )
    check_projections(recipe, config)
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes":
        raise UserError(
            f"{recipe.base} is stored in the 4 or 8 bits of bitsandbytes, which the server cannot "
            "load: name the model that it was made from; quantization: nf4 rounds it in training"
        )
    if recipe.quantization == "fp8" and config.get("quantization_config"):
        raise UserError(
            f"quantization: fp8 rounds an unquantized base, and {recipe.base} is quantized; name "
            "the model that it was made from"
        )
    if recipe.export == "merged" and config.get("quantization_config"):
        raise UserError(
            f"export: merged needs an unquantized base, and {recipe.base} is quantized; name the "
            "model that it was made from, or set export: adapter"
        )


def check_located(recipe: Profile, folder: Path | None) -> None:
    """Check the base in the first step, as far as its config can be read there.

    `folder` is where the base was found; None if it was not. Raises UserError as `check_base`, and
    where the base is named by a path that is no folder. A hub model that was not found passes.
    """
    base = Path(recipe.base)
    config = (folder or base) / "config.json"
    if config.is_file():
        try:
            content = json.loads(config.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{config} is no JSON: {error}") from error
        check_base(recipe, content)
    elif folder is None and len(base.parts) > 1 and base.parent.is_dir() and not base.is_dir():
        raise UserError(f"base {recipe.base!r} is no folder here, and the hub did not give it")


def check_projections(recipe: Profile, config: Mapping[str, Any]) -> None:
    """Raise UserError for projections that the base lacks, and for longrope positions."""
    architecture = config["architectures"][0]
    names = projections(architecture)
    if unknown := [name for name in recipe.projections if name not in names]:
        raise UserError(
            f"target_modules: a base of class {architecture} has no {unknown[0]}; it has "
            f"{', '.join(names)}"
        )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        raise UserError(
            f"{recipe.base} places tokens by the length of a row (longrope), which its server does "
            "by its own limit: their numbers would differ; name the model for short contexts"
        )
