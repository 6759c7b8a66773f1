"""The contract of an adapter that has just been trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraline import contract
from loraline.base import architectures

if TYPE_CHECKING:
    from loraline.base.encoding import Encoder, Row
    from loraline.base.locate import Base
    from loraline.profiles.profile import Profile


def write(
    adapter: Path,
    recipe: Profile,
    base: Base,
    encoder: Encoder,
    prompt: str,
    rows: dict[str, list[Row]],
    data: Mapping[str, str],
) -> contract.Contract:
    """State beside the weights what they were trained with; `data` is parameters of their run."""
    written = contract.Contract(
        base=recipe.base,
        base_revision=base.revision,
        modality=recipe.modality,
        architecture=base.architecture,
        prompt=prompt,
        prompt_uri=data.get("prompt_uri", ""),
        boxes=data.get("boxes"),
        tools=data.get("tools") == "yes",
        chat_template=encoder.chat_template,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
        max_images=max(1, *(len(row.images) for split in rows.values() for row in split)),
        max_videos=max(len(row.videos) for split in rows.values() for row in split),
        max_length=max(len(row) for split in rows.values() for row in split),
        max_new_tokens=recipe.max_new_tokens,
        max_positions=architectures.positions(base.config),
        dtype=recipe.serve_dtype,
        quantization="fp8" if recipe.quantization == "fp8" else "none",
        train=recipe.train,
        r=recipe.rank * recipe.rank_factor,
        lora_alpha=(recipe.lora_alpha or 0) * recipe.rank_factor if recipe.rank else 0,
        target_modules=recipe.projections,
        export=recipe.export,
        trains_vision=recipe.trains_vision,
        adapter_sha256=contract.weights_digest(adapter, recipe.train),
    )
    contract.write(written, adapter)
    return written
