"""Load a base's weights, whole, in 8 bits or in 4, with or without an adapter."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraline.base.locate import Base, refusing_remote_code, weight_files
from loraline.base.targets import VISION_TOWER
from loraline.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraline.contract import Contract


Quantization = Literal["none", "nf4", "fp8"]
"""How a base's linear layers are kept: at the type of the rest, in 4-bit NF4 with double
quantization, or in FP8."""


def load(
    base: Base,
    modality: str,
    *,
    quantization: Quantization,
    dtype: str,
    on_host: bool = False,
    both_layouts: bool = False,
) -> PreTrainedModel:
    """Load a base on the GPU if there is one; `on_host` leaves it in the host's memory anyway.

    When quantized, the head and the vision tower stay at `dtype`, which is also the compute type.
    `both_layouts` keeps weights in FP8 transposed as well, as a backward pass reads them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging

    from loraline.base import fp8

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    use_one_thread_for_tiny_models(base)
    on_gpu = torch.cuda.is_available() and not on_host
    # In FP8 it is put on the card layer by layer: whole, it may be too large.
    loads_on_gpu = on_gpu and quantization != "fp8"
    auto = AutoModelForImageTextToText if modality == "vision" else AutoModelForCausalLM
    # A given list replaces the default exclusion of lm_head, and the tower's entry matches
    # only by its full path.
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["lm_head", VISION_TOWER],
    )
    with refusing_remote_code(base.path):
        model = auto.from_pretrained(
            base.path,
            dtype=getattr(torch, dtype),
            quantization_config=nf4 if quantization == "nf4" else None,
            device_map={"": torch.cuda.current_device()} if loads_on_gpu else None,
            use_safetensors=True,
            trust_remote_code=False,
        )
    if quantization == "nf4":
        check_quantized(model)
    elif quantization == "fp8":
        fp8.convert(model, torch.device("cuda" if on_gpu else "cpu"), keep_transposed=both_layouts)
    return model


def use_one_thread_for_tiny_models(base: Base) -> None:
    """Use one thread for a model of a few megabytes; more threads would wait for each other."""
    import torch

    size = sum(file.stat().st_size for file in weight_files(base.path))
    if size < 2**25 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_quantized(model: PreTrainedModel) -> None:
    """Assert which layers are 4-bit, and keep bitsandbytes' CPU kernels differentiable."""
    import bitsandbytes as bnb
    import torch

    from loraline.base.fp8 import stays_unquantized

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            four_bit = isinstance(module, bnb.nn.Linear4bit)
            assert four_bit != stays_unquantized(name), (
                f"{name} is {'' if four_bit else 'not '}4-bit"
            )
        if isinstance(module, bnb.nn.Linear4bit):
            # On CPUs with avx512_bf16 the first forward in eval mode would repack the weights for
            # a kernel without gradient; training after it would silently learn nothing.
            module.support_avx512bf16_for_cpu = False


def trained_base(agreed: Contract, base: Base, folder: Path) -> Base:
    """A model that was trained whole, as a base: its folder in the place of the base's."""
    assert agreed.train == "full", f"{folder} holds an adapter"
    return Base(folder, base.revision, base.config)


def attach(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Load an adapter onto its base; a UserError if a weight fits no module or does nothing."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    tuned = PeftModel.from_pretrained(model, str(adapter))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        stored = {key: bool(weights.get_tensor(key).any()) for key in weights.keys()}  # noqa: SIM118 - not a dict
    strays = sorted(set(stored) - set(get_peft_model_state_dict(tuned)))
    if strays:
        raise UserError(f"{adapter}: {strays[0]} matches no module of {type(model).__name__}")
    if not any(stored[key] for key in stored if ".lora_B." in key):
        raise UserError(f"{adapter}: all lora_B weights are zero, the adapter changes nothing")
    tuned.eval()
    return tuned
