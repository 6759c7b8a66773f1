"""Bounding boxes from the coordinates that data have to those that a Qwen-VL base was trained on.

And back: from the numbers of an answer to shares and pixels of the upright original.

| base | convention | numbers | written as |
|---|---|---|---|
| Qwen2-VL | `qwen2_vl` | 0 to 1000 of the image | `<|box_start|>(x1,y1),(x2,y2)<|box_end|>` |
| Qwen2.5-VL | `qwen2_5_vl` | pixels of the resized image | `{"bbox_2d": [x1, y1, x2, y2]}` |
| Qwen3-VL | `qwen3_vl` | 0 to 1000 of the image | `{"bbox_2d": [x1, y1, x2, y2]}` |

Sources: the Qwen2-VL report (arXiv 2409.12191, 2.2), the Qwen2.5-VL report (arXiv 2502.13923, 2.1),
the cookbooks of Qwen3-VL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraline.base import pixels
from loraline.data.checks import BadRow, Turns
from loraline.data.reading.keys import SETTINGS
from loraline.data.reading.values import written as written_value
from loraline.profiles.profile import Profile

CONVENTIONS = {
    "qwen2_vl": "0 to 1000 of the image",
    "qwen2_5_vl": "pixels of the resized image",
    "qwen3_vl": "0 to 1000 of the image",
}

THOUSAND = 1000
SLACK = 1e-3
"""Share of the image by which a box may stick out, for rounding in the data; the rest is cut."""

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
JSON_BOX = re.compile(rf'("bbox(?:_2d)?"\s*:\s*)\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]')
TOKEN_BOX = re.compile(
    rf"(<\|box_start\|>|<box>)\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)"
    r"(?:<\|box_end\|>|</box>)"
)
BOX = re.compile(r"""["']bbox(?:_2d)?["']\s*:\s*|<\|box_start\|>|<box>""")
"""The beginning of a box in any form, complete or not; a question may show it as an example."""

PLACE, NAME = "<bbox>", "<ref-object>"
"""Placeholders of ms-swift for the boxes and names in a row's `objects`."""

PLACED = re.compile(rf'("bbox(?:_2d)?"\s*:\s*)?{PLACE}')
"""A box's placeholder by itself, or as the value of a key of JSON."""

UNITS = {"real": "pixels", "norm1": "unit"}
"""Values of `bbox_type` in the `objects` of ms-swift, and the unit that they mean."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2: left, top, right, bottom."""

Size = tuple[int, int]
"""Height and width in pixels."""

Point = tuple[float, float]
"""x and y as shares of an image's width and height."""


def convention(base: str, folder: Path | None) -> str | None:
    """The convention of a base, by its config or else by its name; None if it has none."""
    model_type = base.lower().replace("-", "_").replace(".", "_")
    config = folder / "config.json" if folder else None
    if config and config.is_file():
        model_type = str(json.loads(config.read_text()).get("model_type", model_type))
    # The longest name first: qwen2_vl is no part of qwen2_5_vl, but a folder may hold both words.
    return next((name for name in sorted(CONVENTIONS, reverse=True) if name in model_type), None)


def to_unit(box: Sequence[float], size: Size, coordinates: str) -> Box:
    """A box as shares of its image; BadRow if it is empty, upside down or outside.

    `coordinates` is `pixels`, `unit` for 0 to 1, or `thousand` for 0 to 1000, of the upright image.
    """
    height, width = size
    wide, tall = {"pixels": (width, height), "unit": (1, 1), "thousand": (THOUSAND, THOUSAND)}[
        coordinates
    ]
    left, top, right, bottom = box[0] / wide, box[1] / tall, box[2] / wide, box[3] / tall
    if not (left < right and top < bottom):
        raise BadRow("boxes", f"box {list(box)} is not left, top, right, bottom")
    if min(left, top) < -SLACK or max(right, bottom) > 1 + SLACK:
        raise BadRow(
            "boxes",
            f"box {list(box)} lies outside of its image ({coordinates}, {width} x {height})",
        )
    return max(left, 0), max(top, 0), min(right, 1), min(bottom, 1)


def from_unit(box: Box, size: Size, target: str, recipe: Profile) -> tuple[int, int, int, int]:
    """Whole numbers of a box in a convention; the resized image is that of the profile's limits."""
    resized = shown_size(size, target, recipe.min_pixels or 0, recipe.max_pixels or 2**31)
    return in_pixels(box, counted_to(target, resized))


def shown_size(size: Size, target: str, min_pixels: int, max_pixels: int) -> Size:
    """Size at which the image processor of a convention's bases shows an upright image."""
    return pixels.resized(
        *size, cell=pixels.cell(target), min_pixels=min_pixels, max_pixels=max_pixels
    )


def counted_to(target: str, resized: Size) -> Size:
    """What a convention's numbers count to, down and across the image."""
    return resized if target == "qwen2_5_vl" else (THOUSAND, THOUSAND)


def to_original(point: Point, counted: Size) -> Point:
    """A point of an answer as shares of the image, where its numbers count to `counted`.

    Shares are all that resizing leaves as they are: the processor resizes each side by its own
    factor. The inverse of `from_unit`, but for the rounding.
    """
    return point[0] / counted[1], point[1] / counted[0]


def in_pixels(box: Box, size: Size) -> tuple[int, int, int, int]:
    """A box of shares in whole pixels of an image."""
    height, width = size
    left, top, right, bottom = box
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def written(box: Sequence[int], target: str) -> str:
    """A box in the words of a convention."""
    if target == "qwen2_vl":
        return f"<|box_start|>({box[0]},{box[1]}),({box[2]},{box[3]})<|box_end|>"
    return f'{{"bbox_2d": [{box[0]}, {box[1]}, {box[2]}, {box[3]}]}}'


def convert(
    turns: Turns,
    objects: Mapping[str, Any] | None,
    sizes: Sequence[Size],
    coordinates: str,
    target: str,
    recipe: Profile,
) -> Turns:
    """Turns with every box in the convention `target`: those in the text, and those of `objects`.

    Raises BadRow for a box that is malformed, outside of its image, or of no known image.
    """
    placed = placeholders(objects, sizes, coordinates, target, recipe)

    def converted_box(match: re.Match[str]) -> str:
        if len(sizes) != 1:
            raise BadRow("boxes", f"a box in the text needs one image, the row has {len(sizes)}")
        numbers = [float(number) for number in match.groups()[1:]]
        box = from_unit(to_unit(numbers, sizes[0], coordinates), sizes[0], target, recipe)
        if match.group(1) in ("<|box_start|>", "<box>"):
            return written(box, "qwen2_vl")
        return f"{match.group(1)}{list(box)}"

    def placed_box(match: re.Match[str]) -> str:
        box = next(placed)
        return f"{match.group(1)}{list(box)}" if match.group(1) else written(box, target)

    def fill(role: str, text: str) -> str:
        if role == "assistant":
            complete_starts = {
                match.start()
                for form in (JSON_BOX, TOKEN_BOX, PLACED)
                for match in form.finditer(text)
            }
            for match in BOX.finditer(text):
                if match.start() not in complete_starts:
                    excerpt = text[match.start() : match.end() + 40]
                    raise BadRow("boxes", f"{excerpt!r} is not a box of four numbers")
        text = TOKEN_BOX.sub(converted_box, JSON_BOX.sub(converted_box, text))
        try:
            return PLACED.sub(placed_box, text)
        except StopIteration:
            raise BadRow("boxes", f"more {PLACE} than objects") from None

    filled = [(role, fill(role, text)) for role, text in turns]
    if next(placed, None) is not None:
        raise BadRow("boxes", f"more objects than {PLACE}")
    return filled


def with_names(turns: Turns, objects: Mapping[str, Any] | None) -> Turns:
    """Turns with the names of `objects` in their places; they are text like all other.

    Raises BadRow where there are more or fewer names than places.
    """
    if not any(NAME in text for _, text in turns):
        return turns
    named = (objects or {}).get("ref") or []
    names = iter(named if isinstance(named, list) else [named])

    def name(_: re.Match[str]) -> str:
        if (text := written_value(next(names, None))) is None:
            raise BadRow("boxes", f"more {NAME} than names in `objects`, or a name that is no text")
        return text

    filled = [(role, re.sub(NAME, name, text)) for role, text in turns]
    if next(names, None) is not None:
        raise BadRow("boxes", f"more names in `objects` than {NAME}")
    return filled


def refuse_places(turns: Turns, objects: Mapping[str, Any] | None) -> None:
    """Raise BadRow for `objects`, or a placeholder of one, in a row whose source has no `boxes`.

    Without that setting nothing says what the numbers mean.
    """
    places = (place for _, text in turns for place in (PLACE, NAME) if place in text)
    named = next(places, None) or ("`objects`" if objects else None)
    if named:
        raise BadRow(
            "boxes",
            f"holds {named}, and the source has no `boxes`; say pixels, unit or thousand, or "
            f"ignore: [objects], {SETTINGS}",
        )


def placeholders(
    objects: Mapping[str, Any] | None,
    sizes: Sequence[Size],
    coordinates: str,
    target: str,
    recipe: Profile,
) -> Iterator[tuple[int, int, int, int]]:
    """The boxes of a row's `objects`, converted, in their order."""
    unit_of_row = (objects or {}).get("bbox_type") or ""
    if unit_of_row and UNITS.get(str(unit_of_row)) != coordinates:
        raise BadRow(
            "boxes", f"objects have the bbox_type {str(unit_of_row)[:20]!r}, not {coordinates}"
        )
    listed = (objects or {}).get("bbox") or []
    images = (objects or {}).get("image_id") or (
        [0] * len(listed) if isinstance(listed, list) else 0
    )
    if not isinstance(listed, list) or not isinstance(images, list) or len(images) != len(listed):
        raise BadRow("boxes", "objects do not hold a list of boxes, with an image for each")
    for box, image in zip(listed, images, strict=False):
        if not (isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box))):
            raise BadRow("boxes", f"box {box!r} is not four numbers")
        if not (isinstance(image, int) and 0 <= image < len(sizes)):
            raise BadRow("boxes", f"a box is of image {image!r}, the row has {len(sizes)}")
        unit = to_unit(box, sizes[image], coordinates)
        yield from_unit(unit, sizes[image], target, recipe)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
