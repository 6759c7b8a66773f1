"""A box of a stored picture, as data has it, comes back from a model's answer where it was.

On its way it is turned upright, shown to the model resized, written in the family's numbers, read
by the parser, and turned back.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import exif_turns
import pytest
from PIL import Image

from gateway import tasks
from gateway.parsing import parse
from loraline.data import boxes
from loraline.data.boxes import Box, Size

TASK = tasks.load(None)["spatial-boxes"]
LIMITS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}
FAMILIES = {"qwen2-vl": "qwen2_vl", "qwen2.5-vl": "qwen2_5_vl", "qwen3-vl": "qwen3_vl"}


def answered(box: Box, upright: Size, family: str) -> tuple[list[int], Size]:
    """The pixels that the parser gives for a box of shares, and what the numbers counted to."""
    convention = FAMILIES[family]
    shown = boxes.shown_size(upright, convention, **LIMITS)
    counted = boxes.counted_to(convention, shown)
    parsed = parse(
        TASK,
        boxes.written(boxes.in_pixels(box, counted), convention),
        family=family,
        finish_reason="stop",
        original=(upright[1], upright[0]),
        resized=(shown[1], shown[0]),
    )
    (item,) = parsed.items
    pixels: list[int] = item["box_pixels"]
    return pixels, counted


def sizes(count: int, seed: int) -> Iterator[tuple[Size, random.Random]]:
    """Heights and widths of stored pictures, from icons to photographs."""
    pick = random.Random(seed)
    for _ in range(count):
        height = round(2 ** pick.uniform(5, 12.5))
        width = min(max(round(height * 2 ** pick.uniform(-3, 3)), 32), 8000)
        yield (height, width), pick


def check(count: int, seed: int) -> None:
    for stored, pick in sizes(count, seed):
        height, width = stored
        # Wide enough that its corners stay apart in any family's numbers.
        wide, tall = pick.randint(width // 8, width), pick.randint(height // 8, height)
        left, top = pick.randint(0, width - wide), pick.randint(0, height - tall)
        unit = boxes.to_unit((left, top, left + wide, top + tall), stored, "pixels")
        for family in FAMILIES:
            for orientation in exif_turns.TURNS:
                upright = exif_turns.upright_size(stored, orientation)
                pixels, counted = answered(exif_turns.turned(unit, orientation), upright, family)
                back = exif_turns.turned_back(boxes.to_unit(pixels, upright, "pixels"), orientation)
                result = boxes.in_pixels(back, stored)
                # A pixel of the picture, or of what the model's numbers count, the coarser one.
                step = [max(1, side / steps) for side, steps in zip(upright, counted, strict=True)]
                step = step if orientation < 5 else step[::-1]
                wanted = (left, top, left + wide, top + tall)
                for found_edge, edge, limit in zip(result, wanted, step[::-1] * 2, strict=True):
                    assert abs(found_edge - edge) <= limit, (stored, family, orientation, wanted)


def test_boxes_of_a_hundred_sizes_come_back_within_a_pixel() -> None:
    check(100, seed=0)


@pytest.mark.slow
def test_boxes_of_ten_thousand_sizes_come_back_within_a_pixel() -> None:
    check(10_000, seed=1)


@pytest.mark.parametrize("orientation", list(exif_turns.TURNS))
def test_turns_are_those_of_pillow(orientation: int) -> None:
    """One dark pixel of a picture is found where Pillow shows it."""
    from PIL import ImageOps

    stored = Image.new("L", (5, 3), 255)
    stored.putpixel((1, 2), 0)
    stored.getexif()[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=stored.getexif())
    shown = ImageOps.exif_transpose(Image.open(file))
    assert exif_turns.upright_size((3, 5), orientation) == (shown.height, shown.width)
    box = exif_turns.turned((1 / 5, 2 / 3, 2 / 5, 3 / 3), orientation)
    left, top, right, bottom = boxes.in_pixels(box, (shown.height, shown.width))
    assert (right - left, bottom - top) == (1, 1)
    assert shown.getpixel((left, top)) == 0


@pytest.mark.parametrize("orientation", list(exif_turns.TURNS))
def test_turning_back_undoes_a_turn(orientation: int) -> None:
    box = (0.1, 0.2, 0.5, 0.9)
    assert exif_turns.turned_back(
        exif_turns.turned(box, orientation), orientation
    ) == pytest.approx(box)
