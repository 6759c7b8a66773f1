"""Items drawn over a picture: as an SVG layer, and as a PNG with the picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from loraline.errors import UserError

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#e377c2", "#17becf", "#8c564b")
"""Colours that most people can tell apart; each label has a colour."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MOST_ITEMS = 2000
LONGEST_LABEL = 80
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML does not allow, escaped or not (XML 1.0, 2.2)."""

Pixels = Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A shape to draw, in pixels of the upright picture."""

    shape: str
    """box, point, polygon or arrow."""

    corners: tuple[tuple[float, float], ...]
    label: str
    colour: str


def svg(image_size: tuple[int, int], items: Sequence[dict[str, Any]]) -> str:
    """An SVG of the picture's width and height in pixels, without the picture.

    Labels are a model's words: they are text, never markup, and there is no link or script.
    """
    width, height = image_size
    stroke = max(width, height) / 400
    size = stroke * 7
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="{size:g}">'
    ]
    for mark in marks(items):
        pen = f'fill="none" stroke="{mark.colour}" stroke-width="{stroke:g}"'
        (x, y), last = mark.corners[0], mark.corners[-1]
        if mark.shape == "box":
            sides = f'width="{last[0] - x:g}" height="{last[1] - y:g}"'
            drawn = f'<rect x="{x:g}" y="{y:g}" {sides} {pen}/>'
        elif mark.shape == "polygon":
            points = " ".join(f"{a:g},{b:g}" for a, b in mark.corners)
            drawn = f'<polygon points="{points}" {pen}/>'
        elif mark.shape == "arrow":
            drawn = (
                f'<line x1="{x:g}" y1="{y:g}" x2="{last[0]:g}" y2="{last[1]:g}" {pen}/>'
                f'<circle cx="{last[0]:g}" cy="{last[1]:g}" r="{2 * stroke:g}" {pen}/>'
            )
        else:
            drawn = f'<circle cx="{x:g}" cy="{y:g}" r="{3 * stroke:g}" {pen}/>'
        name = escape(NOT_XML.sub("", mark.label))
        text = (
            f'<text x="{x:g}" y="{max(y - stroke, size):g}" fill="{mark.colour}" stroke="#fff" '
            f'stroke-width="{stroke:g}" paint-order="stroke">{name}</text>'
        )
        lines.append(f"<g><title>{name}</title>{drawn}{text if name else ''}</g>")
    return "\n".join([*lines, "</svg>"])


def png(image_bytes: bytes, items: Sequence[dict[str, Any]], most_pixels: int) -> bytes:
    """The upright picture with the items drawn on it; UserError if it cannot be read."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    try:
        picture = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
        if picture.width * picture.height > most_pixels:
            raise UserError(f"the picture has more than {most_pixels:,} pixels")
        picture = ImageOps.exif_transpose(picture)
        white = Image.new("RGB", picture.size, "white")
        rgba = picture.convert("RGBA")
        white.paste(rgba, mask=rgba.getchannel("A"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError("the picture cannot be decoded") from error
    pen = ImageDraw.Draw(white)
    stroke = max(1, round(max(white.size) / 400))
    # Pillow's own font has Latin letters; others are drawn as boxes.
    font = ImageFont.load_default(max(10, stroke * 7))
    for mark in marks(items):
        (x, y), last = mark.corners[0], mark.corners[-1]
        if mark.shape == "box":
            pen.rectangle((x, y, *last), outline=mark.colour, width=stroke)
        elif mark.shape == "polygon":
            pen.line([*mark.corners, mark.corners[0]], fill=mark.colour, width=stroke)
        elif mark.shape == "arrow":
            pen.line([mark.corners[0], last], fill=mark.colour, width=stroke)
            pen.circle(last, 2 * stroke, outline=mark.colour, width=stroke)
        else:
            pen.circle((x, y), 3 * stroke, outline=mark.colour, width=stroke)
        if mark.label:
            place = (x, max(y - stroke, font.size))
            paper = {"stroke_width": max(1, stroke // 2), "stroke_fill": "white"}
            pen.text(place, mark.label, fill=mark.colour, font=font, anchor="ls", **paper)
    drawn = io.BytesIO()
    white.save(drawn, "PNG")
    return drawn.getvalue()


def marks(items: Sequence[dict[str, Any]]) -> Iterator[Mark]:
    """The items that have a place in pixels, with a colour for each label."""
    colours: dict[str, str] = {}
    for item in items[:MOST_ITEMS]:
        name = str(item.get("label") or item.get("text") or action_of(item))
        label = " ".join(name.split())[:LONGEST_LABEL]
        colour = colours.setdefault(label, COLOURS[len(colours) % len(COLOURS)])
        if box := item.get("box_pixels"):
            yield Mark("box", ((box[0], box[1]), (box[2], box[3])), label, colour)
        elif polygon := item.get("polygon_pixels"):
            yield Mark("polygon", tuple((x, y) for x, y in polygon), label, colour)
        elif point := item.get("point_pixels"):
            end = item.get("end_pixels")
            corners = [tuple(point), *([tuple(end)] if end else [])]
            yield Mark("arrow" if end else "point", tuple(corners), label, colour)


def action_of(item: dict[str, Any]) -> str:
    arguments = item.get("arguments")
    return str(arguments.get("action", "")) if isinstance(arguments, dict) else ""
