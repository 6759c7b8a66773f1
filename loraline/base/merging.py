"""Merge an adapter into its base, and compare the logits with those of base and adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraline.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraline.base.locate import Base
    from loraline.contract import Contract

PROBE = 48
"""Random tokens of the probe."""

GRID = (1, 4, 4)
"""Patches of the probe's random image: time, height, width."""


def merge(tuned: PeftModel) -> PreTrainedModel:
    """The base of `tuned` with the adapter merged in; the base itself is changed.

    Raises UserError when the base is quantized, whose rounding would swallow the update, or when
    the logits of a probe are not the adapter's: further off than half of the type's digits, or
    hardly nearer to them than those of the base alone, as when rounding swallows the update.
    """
    base = tuned.get_base_model()
    if getattr(base.config, "quantization_config", None) is not None:
        raise UserError("an adapter is merged into an unquantized base, and this one is quantized")
    tuned.eval()
    probe_inputs = probe(base)
    expected = logits(tuned, probe_inputs)
    with tuned.disable_adapter():
        unchanged = distance(logits(tuned, probe_inputs), expected)
    merged = tuned.merge_and_unload(safe_merge=True)
    deviation = distance(logits(merged, probe_inputs), expected)
    allowed = min(torch.finfo(base.dtype).eps ** 0.5, 0.75 * unchanged)
    # NaN compares false with both bounds.
    if not deviation <= allowed:
        raise UserError(
            f"the adapter is not the same once it is merged into its {base.dtype} base: logits are "
            f"{deviation:.2g} of their size from the adapter's, and up to {allowed:.2g} would be "
            "rounding; serve it unmerged, or with a serve_dtype of more digits"
        )
    return merged


def write(agreed: Contract, base: Base, adapter: Path, folder: Path) -> Path:
    """A folder with the merged model in the contract's precision, and the base's tokenizer."""
    from loraline.base.load import attach, load

    loaded = load(base, agreed.modality, quantization="none", dtype=agreed.dtype)
    merge(attach(loaded, adapter)).save_pretrained(folder)
    copy_tokenizer(base, agreed.modality, folder)
    return folder


def copy_tokenizer(base: Base, modality: str, folder: Path) -> None:
    """Put the base's tokenizer, and for vision its processor, beside a model made of it."""
    from transformers import AutoProcessor, AutoTokenizer

    preprocessor = AutoProcessor if modality == "vision" else AutoTokenizer
    loaded = preprocessor.from_pretrained(base.path, trust_remote_code=False)
    loaded.save_pretrained(folder)


def probe(base: PreTrainedModel) -> dict[str, Tensor]:
    """A row of random tokens, with a random image for a vision model: the same for every call."""
    generator = torch.Generator().manual_seed(0)
    config = base.config
    size = config.get_text_config().vocab_size
    tokens = torch.randint(size, (PROBE,), generator=generator).tolist()
    if not hasattr(config, "vision_config"):
        return {"input_ids": torch.tensor([tokens], device=base.device)}
    vision = config.vision_config
    special = {config.image_token_id, config.video_token_id, config.vision_start_token_id}
    image_tokens = GRID[1] * GRID[2] // vision.spatial_merge_size**2
    row = [config.vision_start_token_id, *[config.image_token_id] * image_tokens]
    row += [token for token in tokens if token not in special]
    ids = torch.tensor([row], device=base.device)
    features = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(GRID[1] * GRID[2], features, generator=generator)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": pixels.to(base.device, base.dtype),
        "image_grid_thw": torch.tensor([GRID], device=base.device),
    }


def logits(model: Any, probe_inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**probe_inputs).logits.float()


def distance(actual: Tensor, expected: Tensor) -> float:
    """Root of the mean square of the difference, as a share of that of `expected`."""
    return float((actual - expected).norm() / expected.norm())
