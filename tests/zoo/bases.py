"""Tiny random bases of the text architectures that the zoo shows beside the project's own four."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
CORPUS = [r"\frac{a}{b} + x^{2}", "What is the capital of France?"] * 4

VISION = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
"""Bases that see; these and Mistral are test_data's own."""


def tiny_bases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "test_data" / "tiny_bases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(base: str, folder: Path) -> None:
    """Write a base of test_data, or one of OTHERS: 2 layers, 128 wide, heads of 32."""
    import torch

    tiny = tiny_bases()
    if base not in OTHERS:
        tiny.build(base, folder, CORPUS)
        return
    torch.manual_seed(0)
    words = tiny.tokenizer(CORPUS, ["<s>", "</s>"], 400, bos_token="<s>", eos_token="</s>")
    words.chat_template = tiny.INSTRUCT
    sizes = tiny.text_config(words) | {"num_hidden_layers": 2, "num_key_value_heads": 2}
    OTHERS[base](sizes).save_pretrained(folder)
    words.save_pretrained(folder)


def llama(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))


def llama_tied(sizes: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))


def qwen2(sizes: dict[str, Any]) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False))


def qwen3(sizes: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=False))


def gemma3(sizes: dict[str, Any]) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    window = {"sliding_window": 32, "query_pre_attn_scalar": 32}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **window))


def phi3(sizes: dict[str, Any]) -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {key: value for key, value in sizes.items() if key != "head_dim"}
    return Phi3ForCausalLM(Phi3Config(**sizes, tie_word_embeddings=False))


OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "llama": llama,
    "llama-tied": llama_tied,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3": gemma3,
    "phi3": phi3,
}
