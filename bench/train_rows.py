"""The rows of the training benches, and the profiles that they are trained with."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

BLOCKS = 16 * 16 * 3
"""Bytes of the colours of a photograph's blocks."""


def texts(count: int) -> list[tuple[str, str]]:
    """Questions and answers of uneven length: log-normal, a few of them near the limit."""
    rng = random.Random(0)

    def words(tokens: float) -> str:
        return " ".join(
            rng.choice(("people", "name", "where", "lives")) for _ in range(int(tokens))
        )

    return [
        (
            words(min(500, rng.lognormvariate(4.0, 0.8))),
            words(min(200, rng.lognormvariate(3.4, 0.8))),
        )
        for _ in range(count)
    ]


def pictures(count: int) -> list[tuple[bytes, str]]:
    """Photographs of noise blocks in many sizes, and answers of 10 to 100 words."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        blocks = rng.randbytes(BLOCKS)
        image = photograph(blocks, (rng.randrange(224, 900), rng.randrange(224, 700)))
        rows.append((image, " ".join(["x + y"] * rng.randrange(5, 40))))
    return rows


def photograph(blocks: bytes, size: tuple[int, int]) -> bytes:
    """A JPEG of `size` pixels that shows 16 x 16 blocks of these colours."""
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (16, 16), blocks).resize(size).save(file, "JPEG")
    return file.getvalue()


def recipe_for(task: str, base: Path, rows_per_step: int, steps: int) -> Any:
    """The standard profile for text; rank 16 on all projections for vision."""
    from loraline.profiles.profile import Profile

    common = {
        "base": str(base),
        "rows_per_step": rows_per_step,
        "max_steps": steps,
        "max_length": 2048,
        "warmup_steps": 2,
    }
    if task == "text":
        return Profile(
            r=8,
            lora_alpha=16,
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
            **common,
        )
    return Profile(
        modality="vision",
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=(
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        min_pixels=3136,
        max_pixels=401408,
        **common,
    )


def encoder_for(base: Path, recipe: Any) -> Any:
    from loraline.base.encoding import Encoder

    return Encoder(
        base, recipe.modality, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
    )


def rows_for(task: str, encoder: Any, count: int) -> list[Any]:
    """The task's questions or pictures with their answers, encoded."""
    from loraline.base.encoding import Row
    from loraline.records import from_prompt

    if task == "text":
        words = encoder.tokenizer
        pairs = texts(count)
        return [Row(words(q).input_ids, [*words(a).input_ids, encoder.end]) for q, a in pairs]
    return [
        encoder.encode(from_prompt("Read the picture.", "", answer, image))
        for image, answer in pictures(count)
    ]
