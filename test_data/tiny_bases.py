"""Tiny bases with the real architectures: random, for tests, or as a start for training one.

Each is a folder as the hub would hold it: config, safetensors, tokenizer, processor.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

VISION_TOKENS = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "[INST] {{ message.content }} [/INST]{% else %} {{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
PATCH = 14
HIDDEN, LAYERS, VISION_HIDDEN, VISION_DEPTH = 128, 3, 96, 2
"""Widths and depths of all: head dimension 32, which vLLM serves on a CPU, and layer sizes
that bitsandbytes takes whole (inputs by 64, outputs by 32)."""

TEXT = ("mistral", "llama3", "qwen3", "gemma3", "phi3")
VISION = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
ARCHITECTURES = (*TEXT, *VISION)


def build(architecture: str, folder: Path, corpus: Iterable[str], seed: int = 0) -> None:
    """Write a random base of one of ARCHITECTURES whose tokenizer is trained on `corpus`."""
    import torch

    torch.manual_seed(seed)
    if architecture in TEXT:
        build_text(architecture, folder, corpus)
    else:
        build_vision(architecture, folder, chat_tokenizer(corpus))


def build_vision(
    architecture: str, folder: Path, words: Any, vision_hidden: int = VISION_HIDDEN
) -> None:
    """Write a random Qwen-VL base with this tokenizer; `vision_hidden` is a multiple of 32."""
    makers: dict[str, Callable[[Path, Any, int], None]] = {
        "qwen2-vl": qwen2_vl,
        "qwen2.5-vl": qwen2_5_vl,
        "qwen3-vl": qwen3_vl,
    }
    makers[architecture](folder, words, vision_hidden)


def tokenizer(corpus: Iterable[str], special: list[str], size: int, **options: Any) -> Any:
    """A byte-level BPE tokenizer: no text is unknown to it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


def build_text(architecture: str, folder: Path, corpus: Iterable[str]) -> None:
    """Write a random base of one of TEXT."""
    import transformers

    words = tokenizer(corpus, ["<s>", "</s>"], 400, bos_token="<s>", eos_token="</s>")
    words.chat_template = INSTRUCT
    names = {"llama3": "Llama", "gemma3": "Gemma3", "phi3": "Phi3"}
    name = names.get(architecture, architecture.title())
    sizes = text_config(words) | {"num_key_value_heads": 2, "tie_word_embeddings": False}
    of_it: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": None},
        # Three times the positions that it was trained on, as Llama 3.1 has eight times.
        "llama3": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 3.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        "qwen3": {},
        # Every third layer sees the whole row, the others a window.
        "gemma3": {
            "tie_word_embeddings": True,
            "sliding_window": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        "phi3": {"sliding_window": None},
    }
    config_class = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")
    config = config_class(**sizes | of_it[architecture])
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    words.save_pretrained(folder)


def qwen2_vl(folder: Path, words: Any, hidden: int) -> None:
    import transformers

    vision = {
        "embed_dim": hidden,
        "hidden_size": HIDDEN,
        "mlp_ratio": 2,
        "num_heads": hidden // 32,
    }
    config = transformers.Qwen2VLConfig(**vision_config(words, vision))
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    save_processor(folder, words, transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor)


def qwen2_5_vl(folder: Path, words: Any, hidden: int) -> None:
    import transformers

    vision = {
        "hidden_size": hidden,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 2 * hidden,
        "num_heads": hidden // 32,
        "fullatt_block_indexes": [VISION_DEPTH - 1],
        "window_size": 8 * PATCH,
    }
    config = transformers.Qwen2_5_VLConfig(**vision_config(words, vision))
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    save_processor(
        folder, words, transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor
    )


def qwen3_vl(folder: Path, words: Any, hidden: int) -> None:
    import transformers

    vision = {
        "hidden_size": hidden,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 2 * hidden,
        "num_heads": hidden // 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 256,
    }
    config = transformers.Qwen3VLConfig(**vision_config(words, vision, mrope_interleaved=True))
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    save_processor(folder, words, transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor)


def chat_tokenizer(corpus: Iterable[str], more: Sequence[str] = ()) -> Any:
    """A tokenizer with Qwen's control tokens for turns and images, and with `more` of them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS.values(), *more]
    words = tokenizer(
        corpus,
        special,
        320,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=VISION_TOKENS,
    )
    words.chat_template = CHATML
    return words


def text_config(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // 32,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.06,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def vision_config(words: Any, vision: dict[str, Any], **rope: Any) -> dict[str, Any]:
    """A composite config; `mrope_section` splits half of the head dimension among the axes."""
    number = words.convert_tokens_to_ids
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6], **rope}
    text = {**text_config(words), "num_key_value_heads": 2, "rope_parameters": sections}
    return {
        "text_config": text,
        "vision_config": {
            "depth": VISION_DEPTH,
            "patch_size": PATCH,
            "initializer_range": 0.06,
            **vision,
        },
        "image_token_id": number(VISION_TOKENS["image_token"]),
        "video_token_id": number(VISION_TOKENS["video_token"]),
        "vision_start_token_id": number(VISION_TOKENS["vision_bos_token"]),
        "vision_end_token_id": number(VISION_TOKENS["vision_eos_token"]),
        "tie_word_embeddings": False,
    }


def save_processor(folder: Path, words: Any, processor: Any, video_processor: Any) -> None:
    """White paper becomes 0 and ink negative, which a tiny vision tower needs in order to learn."""
    from transformers import Qwen2VLImageProcessor

    images = Qwen2VLImageProcessor(
        patch_size=PATCH,
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64},
        image_mean=[1.0] * 3,
        image_std=[0.3] * 3,
    )
    processor(
        image_processor=images,
        tokenizer=words,
        video_processor=video_processor(patch_size=PATCH),
        chat_template=CHATML,
    ).save_pretrained(folder)


def train(
    folder: Path,
    modality: str,
    encoder: Any,
    rows: Sequence[Any],
    *,
    steps: int,
    keep: bool = False,
) -> None:
    """Train all weights of a base on encoded rows, 32 at a time, and save them in bfloat16.

    Half the bytes a weight lets a base of 3 MB hold twice the weights. `keep` makes each batch once
    and keeps it: for small images, decoding them anew takes as long as learning from them.
    """
    import click
    import torch

    from loraline.base.load import load
    from loraline.base.locate import locate

    torch.manual_seed(0)
    pick = random.Random(0)
    model: Any = load(locate(str(folder), None), modality, quantization="none", dtype="float32")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.05
    )

    def batch_of(chosen: Sequence[Any]) -> Any:
        return encoder.collate(chosen, answers=True, side="right")

    kept = [batch_of(rows[at : at + 32]) for at in range(0, len(rows), 32)] if keep else []
    order: list[int] = []
    for step in range(steps):
        if len(order) < 32:
            order = list(range(len(rows)))
            pick.shuffle(order)
        batch = pick.choice(kept) if keep else batch_of([rows[order.pop()] for _ in range(32)])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            click.echo(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
            sys.stdout.flush()
    model.to(torch.bfloat16).save_pretrained(folder)
