"""Bases of real shape with random weights, for the benches: nothing is fetched.

A step costs the same as with trained weights.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

TEXT_SHAPES: dict[str, dict[str, Any]] = {
    # The defaults of MistralConfig are Mistral-7B-v0.1's shape.
    "7b": {},
    # Mistral-Nemo-Base-2407, as its config.json gives it.
    "12b": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "head_dim": 128,
        "vocab_size": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_window": None,
    },
}
"""What a text base has unlike Mistral-7B, by the name of its size."""


def make_base(task: str, folder: Path, size: str = "7b") -> None:
    """Write a base of real shape with random weights, and the tokenizer of a tiny one."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        MistralConfig,
    )

    tiny = ROOT / "test_data" / task / "base"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    special = AutoConfig.from_pretrained(tiny)
    if task == "text":
        ends = {"bos_token_id": special.bos_token_id, "eos_token_id": special.eos_token_id}
        config = MistralConfig(**TEXT_SHAPES[size], **ends)
        # A trainer that pads would else add a token, and resize the embeddings for it.
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["pad_token"] = settings["bos_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        config = qwen2_5_vl_3b(special)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        processor = (folder / "processor_config.json").read_text()
        processor = processor.replace("Qwen3VLProcessor", "Qwen2_5_VLProcessor")
        processor = processor.replace("Qwen3VLVideoProcessor", "Qwen2VLVideoProcessor")
        (folder / "processor_config.json").write_text(processor)
    model.save_pretrained(folder)


def qwen2_5_vl_3b(special: Any) -> Any:
    """Shape of Qwen/Qwen2.5-VL-3B-Instruct, as its config.json gives it."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
        },
        tie_word_embeddings=True,
        image_token_id=special.image_token_id,
        video_token_id=special.video_token_id,
        vision_start_token_id=special.vision_start_token_id,
        vision_end_token_id=special.vision_end_token_id,
    )


def parameters(base: Path) -> int:
    """Parameters of the language model, as MFU counts them (PaLM, arXiv 2204.02311, appendix B).

    Frozen weights take two FLOPs a token forward and two backward. A vision tower's are left out,
    so the figure is too low for vision.
    """
    from safetensors import safe_open

    count = 0
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                if "visual" not in name:
                    count += math.prod(weights.get_slice(name).get_shape())
    return count
