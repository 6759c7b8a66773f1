"""How the Qwen-VL image processors size an image, without loading one."""

from __future__ import annotations

import math

MAX_RATIO = 200
"""Longest side over shortest side that the processors take."""


def cell(base: str) -> int:
    """Side in pixels of the square that becomes one token: patch size times merge size.

    14 x 2 in Qwen2-VL and Qwen2.5-VL, 16 x 2 in Qwen3-VL (their preprocessor_config.json). `base`
    is an architecture or the name of a model.
    """
    return 32 if "qwen3" in base.lower().replace("_", "") else 28


def resized(
    height: int, width: int, *, cell: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width after resizing: multiples of `cell`, within the limits, ratio kept.

    The `smart_resize` of Qwen2-VL (transformers, image_processing_qwen2_vl); a test holds the two
    together. Python's rounding, half to even, is part of it.
    """
    fitted = round(height / cell) * cell, round(width / cell) * cell
    area = fitted[0] * fitted[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return (
            max(cell, math.floor(height / shrink / cell) * cell),
            max(cell, math.floor(width / shrink / cell) * cell),
        )
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / cell) * cell, math.ceil(width * grow / cell) * cell
    return fitted


def image_tokens(height: int, width: int, *, cell: int, min_pixels: int, max_pixels: int) -> int:
    """Tokens that an image of this size becomes."""
    tall, wide = resized(height, width, cell=cell, min_pixels=min_pixels, max_pixels=max_pixels)
    return (tall // cell) * (wide // cell)
