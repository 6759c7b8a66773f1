"""What a turn's content may be beside a text: parts, and the media that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.values import unpacked

PART_KEYS = {
    "type",
    "index",
    "text",
    "value",
    "image",
    "image_url",
    "video",
    "video_url",
    "url",
    "path",
}

PART_TYPES = ("text", "image", "image_url", "video", "video_url")

Media = str | bytes | Sequence[str]
"""A path inside the source or a data URI; the content itself; a video's frames as paths."""


def parts_of(text: str) -> str | list[Any]:
    """The parts that a text is in JSON, as a table holds them; every other text as it is."""
    try:
        parsed = unpacked(text)
    except BadRow:
        # A text may be JSON with a key twice.
        return text
    parts = parsed if isinstance(parsed, list) else []
    known = all(
        isinstance(part, dict)
        and part.get("type") in PART_TYPES
        and part.keys() <= PART_KEYS
        and len(part) > 1
        for part in parts
    )
    return parts if parts and known else text


def medium(item: Any) -> Media:
    """One medium, as text columns, Parquet columns of Hugging Face and message parts hold it."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path") or item.get("url")
    if isinstance(item, str | bytes) and item:
        return item
    if isinstance(item, list | tuple) and item and all(isinstance(name, str) for name in item):
        return list(item)
    raise BadRow("format", "an image or video is neither a path nor its content")
