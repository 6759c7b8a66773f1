"""Base models: where they are, how they are loaded, and which of their modules are adapted."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraline import lora
from loraline.errors import TryAgain, UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraline.contract import Contract
    from loraline.memory import Plan
    from loraline.profiles import Profile

VISION_TOWER = "model.visual"
"""Module path of the vision tower and its merger in Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

TOWER_BLOCKS = f"{VISION_TOWER}.blocks"
"""Module path of the tower's blocks; what else has linear layers in the tower is a merger."""

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""For bases that come without one, Mistral-7B-v0.1 among them; it travels in the contract."""

DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a hub model that are fetched: weights as safetensors only, and no code."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    path: Path
    revision: str
    """Commit on the hub, or `sha256:` and the digest of a folder's config and weights."""

    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])


def locate(base: str, revision: str | None) -> Base:
    """Find a base model in a folder, or fetch it from the hub into the hub's cache.

    Raises UserError when there is no such model, or none in the cache and HF_HUB_OFFLINE is set;
    TryAgain when the hub does not answer.
    """
    folder = Path(base)
    if folder.is_dir():
        path, revision = folder, None
    elif base.startswith((".", "/")) or base.count("/") > 1:
        raise UserError(f"base model folder {base!r} does not exist")
    else:
        path = fetch(base, revision)
    config = path / "config.json"
    weights = sorted(path.glob("*.safetensors"))
    if not config.is_file() or not weights:
        raise UserError(f"base model {base!r} has no config.json or no safetensors weights")
    return Base(
        path,
        folder_digest([config, *weights]) if folder.is_dir() else path.name,
        json.loads(config.read_text()),
    )


def locate_measured(contract: Contract) -> Base:
    """The base that an adapter was trained on; a UserError if another one stands in its place."""
    on_hub = not contract.base_revision.startswith("sha256:")
    found = locate(contract.base, contract.base_revision if on_hub else None)
    if found.revision != contract.base_revision:
        raise UserError(
            f"base model {contract.base!r} is at {found.revision}, "
            f"the adapter was trained on {contract.base_revision}"
        )
    return found


def locate_tokenizer(contract: Contract) -> Path:
    """The base's folder with its tokenizer and processor, without fetching weights from the hub."""
    if contract.base_revision.startswith("sha256:"):
        return locate_measured(contract).path
    return fetch(contract.base, contract.base_revision, DOWNLOADED[1:])


def fetch(base: str, revision: str | None, files: Sequence[str] = DOWNLOADED) -> Path:
    """Download a hub model; the folder is named after the commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"base model {base!r} (revision {revision or 'default'}) is neither a folder nor a "
            "model on the hub that this account may read"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"base model {base!r} is not in the local cache, and HF_HUB_OFFLINE is set: "
                "fill the cache (HF_HOME) first, or give a folder as base"
            ) from error
        raise TryAgain(
            f"base model {base!r} is not in the local cache and the hub does not answer; "
            "mount a cache with it (HF_HOME) or give a folder as base"
        ) from error


def folder_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def load(base: Base, modality: str, *, quantize: bool, dtype: str) -> PreTrainedModel:
    """Load a base on the GPU if there is one; `quantize` gives 4-bit NF4 with double quantization.

    Under `quantize` the head and the vision tower stay at `dtype`, which is also the compute type.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    tiny_models_run_faster_on_one_thread(base)
    auto = AutoModelForImageTextToText if modality == "vision" else AutoModelForCausalLM
    # A list of one's own replaces the default exclusion of lm_head, and the tower's entry matches
    # only by its full path.
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["lm_head", VISION_TOWER],
    )
    model = auto.from_pretrained(
        base.path,
        dtype=getattr(torch, dtype),
        quantization_config=nf4 if quantize else None,
        device_map={"": torch.cuda.current_device()} if torch.cuda.is_available() else None,
        use_safetensors=True,
    )
    if quantize:
        check_quantized(model)
    return model


def for_training(base: Base, recipe: Profile, plan: Plan) -> PeftModel:
    """The frozen base with a new adapter; what is computed is the same for every plan."""
    import torch
    from peft import LoraConfig, get_peft_model

    # Without a GPU, float32 is the fast type: few CPUs multiply bfloat16.
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    four_bit = recipe.quantization == "nf4"
    model = load(base, recipe.modality, quantize=four_bit, dtype=dtype)
    if four_bit and plan.dequantized:
        # The same rounded weights, unpacked once instead of in every pass.
        model = model.dequantize()
        gc.collect()  # The packed weights are in reference cycles.
    tuned = get_peft_model(
        model,
        LoraConfig(
            r=recipe.r,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            use_rslora=recipe.use_rslora,
            use_dora=recipe.use_dora,
            init_lora_weights=recipe.init_lora_weights or True,
            target_modules=targets_of(recipe),
            task_type="CAUSAL_LM",
        ),
    )
    lora.add_in_place(tuned)
    if recipe.use_dora:
        lora.keep_type(tuned)
    return tuned


def tiny_models_run_faster_on_one_thread(base: Base) -> None:
    """Keep a model of a few megabytes off the second core, where threads only wait for another."""
    import torch

    size = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    if size < 2**25 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_quantized(model: PreTrainedModel) -> None:
    """Assert what is 4-bit and what is not, and keep bitsandbytes' CPU kernels differentiable."""
    import bitsandbytes as bnb
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept = name.startswith(VISION_TOWER) or name.endswith("lm_head")
            four_bit = isinstance(module, bnb.nn.Linear4bit)
            assert four_bit != kept, f"{name} is {'' if four_bit else 'not '}4-bit"
        if isinstance(module, bnb.nn.Linear4bit):
            # On CPUs with avx512_bf16 the first forward in eval mode would repack the weights for
            # a kernel without gradient; training after it would silently learn nothing.
            module.support_avx512bf16_for_cpu = False


def targets_of(recipe: Profile) -> str:
    """Regex over the paths of the modules that a profile adapts."""
    return target_modules(
        recipe.modality,
        recipe.target_modules,
        recipe.merger_learning_rate is not None,
        recipe.tower_learning_rate is not None,
    )


def target_modules(
    modality: str, projections: Sequence[str], merger: bool, tower: bool = False
) -> str:
    """Regex over module paths, for PEFT: the language model's projections, and what is asked for of
    the merger and the tower's blocks.

    Anchored at the language model because Qwen2.5-VL's vision tower has gate, up and down
    projections of the same names, and vLLM drops tower weights that it was not told of.
    """
    language_model = r"model\.language_model" if modality == "vision" else "model"
    names = "|".join(projections)
    pattern = rf"{language_model}\.layers\.\d+\.(?:self_attn|mlp)\.(?:{names})"
    if merger:
        pattern += (
            r"|model\.visual\.(?:merger\.mlp\.[02]"
            r"|(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
        )
    if tower:
        # Qwen2-VL's names, Qwen2.5-VL's and Qwen3-VL's. The patch embedding stays out: it is a
        # convolution, and vLLM applies an adapter on it wrongly.
        pattern += (
            r"|model\.visual\.blocks\.\d+\.(?:attn\.(?:qkv|proj)"
            r"|mlp\.(?:fc[12]|(?:gate|up|down)_proj|linear_fc[12]))"
        )
    return pattern


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
