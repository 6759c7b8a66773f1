"""What is drawn over a picture lies where the items are, and is nothing but a drawing."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from gateway import overlay
from loraline.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"
MOST = 1_000_000
ITEMS: list[dict[str, Any]] = [
    {"kind": "box", "label": "cat", "box_pixels": [10, 20, 60, 90]},
    {"kind": "point", "label": "pin", "point_pixels": [100, 50]},
    {"kind": "polygon", "text": "sign", "polygon_pixels": [[5, 5], [50, 6], [45, 18]]},
    {
        "kind": "action",
        "arguments": {"action": "swipe"},
        "point_pixels": [150, 20],
        "end_pixels": [150, 80],
    },
    {"kind": "text", "text": "words"},
    {"kind": "box", "box_pixels": None},
]


def picture(orientation: int = 1) -> bytes:
    image = Image.new("RGB", (200, 100), "white")
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_shapes_lie_where_the_items_are() -> None:
    root = ElementTree.fromstring(overlay.svg((200, 100), ITEMS))  # noqa: S314 - our own
    assert root.get("viewBox") == "0 0 200 100"
    (box,) = root.iter(f"{SVG}rect")
    assert [box.get(name) for name in ("x", "y", "width", "height")] == ["10", "20", "50", "70"]
    assert [shape.get("points") for shape in root.iter(f"{SVG}polygon")] == ["5,5 50,6 45,18"]
    assert len(list(root.iter(f"{SVG}line"))) == 1
    assert [text.text for text in root.iter(f"{SVG}text")] == ["cat", "pin", "sign", "swipe"]


@pytest.mark.parametrize(
    "label",
    ["<script>alert(1)</script>", '"/><a href="//x">', "]]>", "&amp;", "\0\x1b\ufffe", "x" * 9999],
)
def test_a_label_is_text_whatever_it_says(label: str) -> None:
    drawn = overlay.svg((200, 100), [{**ITEMS[0], "label": label}])
    root = ElementTree.fromstring(drawn)  # noqa: S314 - our own
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
        "svg", "g", "title", "rect", "text",
    }  # fmt: skip
    assert len(drawn) < 2000
    overlay.png(picture(), [{**ITEMS[0], "label": label}], MOST)


def test_the_picture_has_the_box_drawn_in_it() -> None:
    drawn = Image.open(io.BytesIO(overlay.png(picture(), ITEMS, MOST)))
    assert drawn.size == (200, 100)
    red = (0xD6, 0x27, 0x28)
    assert drawn.getpixel((10, 60)) == red
    assert drawn.getpixel((40, 90)) == red
    assert drawn.getpixel((40, 60)) == (255, 255, 255)


def test_the_picture_is_drawn_upright() -> None:
    drawn = Image.open(io.BytesIO(overlay.png(picture(orientation=6), ITEMS, MOST)))
    assert drawn.size == (100, 200)


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UserError, match="more than 19,999 pixels"):
        overlay.png(picture(), ITEMS, 19_999)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<svg/>", picture()[:60]])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="decoded"):
        overlay.png(content, ITEMS, MOST)
