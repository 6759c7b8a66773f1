"""Rows for a pack that is hard to get right: of very different lengths, with and without images."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from loraline.base.encoding import Encoder, Row
from loraline.base.media import rgb_images, video_inputs
from loraline.records import Video

TEXT = ("mistral", "llama3", "qwen3", "gemma3", "phi3")
VISION = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
ARCHITECTURES = (*TEXT, *VISION)


def picture(width: int, height: int, seed: int) -> bytes:
    noise = random.Random(seed).randbytes(width * height * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(file, "PNG")
    return file.getvalue()


def rows_for(encoder: Encoder, vision: bool) -> list[Row]:
    """Rows of very different lengths; with vision: no image, one, and two of different sizes.

    The longest learns an earlier answer, too.
    """
    rng = random.Random(0)
    sizes = [[], [(56, 28)], [(28, 84), (56, 56)], [(84, 28)], []] if vision else [[]] * 5
    rows = []
    for number, (images, words) in enumerate(zip(sizes, (3, 1, 8, 2, 5), strict=True)):
        pictures = tuple(picture(*size, seed=number) for size in images)
        text = "".join("<|vision_start|><|image_pad|><|vision_end|>" for _ in images)
        text += "What is the capital of France? " * words
        if pictures:
            prompt = list(encoder.processor(text=[text], images=rgb_images(pictures)).input_ids[0])
        else:
            prompt = list(encoder.tokenizer(text).input_ids)
        answer = [rng.randrange(10, 300) for _ in range(words + 1)]
        earlier = (slice(len(prompt) - 20, len(prompt) - 12),) if words == 8 else ()
        rows.append(Row(prompt, [*answer, encoder.end], pictures, earlier))
    return rows


def encoder_for(base: Path, vision: bool) -> Encoder:
    limits = {"min_pixels": 784, "max_pixels": 7840} if vision else {}
    return Encoder(base, "vision" if vision else "text", **limits)


def film(frames: int, width: int, height: int, fps: float, seed: int) -> Video:
    pictures = (picture(width, height, seed=100 * seed + number) for number in range(frames))
    return Video(tuple(pictures), fps)


def rows_with_videos(encoder: Encoder) -> list[Row]:
    """Rows of text, of a video, of an image and a video, and of two videos of other speeds."""
    rng = random.Random(1)
    rows = []
    for number, (images, videos, words) in enumerate(
        [
            ([], [], 3),
            ([], [(4, 56, 28, 2.0)], 2),
            ([(28, 84)], [(6, 28, 56, 1.0)], 6),
            ([], [(2, 56, 56, 4.0), (4, 28, 28, 0.5)], 1),
        ]
    ):
        pictures = tuple(picture(*size, seed=number) for size in images)
        moving = tuple(film(*each, seed=number) for each in videos)
        text = "".join("<|vision_start|><|image_pad|><|vision_end|>" for _ in images)
        text += "".join("<|vision_start|><|video_pad|><|vision_end|>" for _ in videos)
        text += "What is the capital of France? " * words
        shown = ({"images": rgb_images(pictures)} if images else {}) | (
            video_inputs(moving) if videos else {}
        )
        encoded = encoder.processor(text=[text], **shown) if shown else encoder.tokenizer([text])
        answer = [rng.randrange(10, 300) for _ in range(words + 1)]
        prompt = list(encoded["input_ids"][0])
        rows.append(Row(prompt, [*answer, encoder.end], pictures, videos=moving))
    return rows
