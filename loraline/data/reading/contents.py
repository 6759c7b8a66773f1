"""What a turn's content may be beside a text: parts, and the media that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.keys import Leftover, unused
from loraline.data.reading.meanings import names_sound
from loraline.data.reading.values import type_name, unpacked
from loraline.records import IMAGE, VIDEO

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

UNUSED_PART_KEYS = {"detail", "annotations", "logprobs"}
"""What OpenAI puts into a part and nothing here reads; the report lists those that are filled."""

RESPONSES = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
"""Types of parts in OpenAI's Responses API, and what its messages call them."""

PART_TYPES = ("text", "image", "image_url", "video", "video_url", *RESPONSES)

Media = str | bytes | Sequence[str]
"""A path inside the source or a data URI; the content itself; a video's frames as paths."""


def parts_of(text: str) -> str | list[Any]:
    """The parts of a content that a table holds as JSON text; any other text as it is."""
    try:
        parsed = unpacked(text)
    except BadRow:
        # A text may be JSON with a key twice.
        return text
    parts = parsed if isinstance(parsed, list) else []
    are_parts = all(
        isinstance(part, dict)
        and part.get("type") in PART_TYPES
        and part.keys() <= PART_KEYS | UNUSED_PART_KEYS
        and len(part) > 1
        for part in parts
    )
    return parts if parts and are_parts else text


def text_alone(value: Any) -> str | None:
    """A text, or parts of text as one; None for everything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    known = all(part.keys() <= {"type", "text"} for part in value if isinstance(part, dict))
    parts = [part.get("text") if isinstance(part, dict) else part for part in value]
    texts = [text for text in parts if isinstance(text, str)]
    return "".join(texts) if known and len(texts) == len(parts) else None


def medium(item: Any) -> Media:
    """One medium, as text columns, Parquet columns of Hugging Face and message parts hold it."""
    if isinstance(item, dict) and "frames" in item:
        raise BadRow(
            "format",
            "a video of an earlier dataset is sampled already and not read again; give its source",
        )
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path") or item.get("url")
    if isinstance(item, str | bytes) and item:
        return item
    if isinstance(item, list | tuple) and item and all(isinstance(name, str) for name in item):
        return list(item)
    raise BadRow("format", "an image or video is neither a path nor its content")


def named_in(part: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first of some keys that a part holds, and the first of all if it holds none."""
    return next((key for key in keys if part.get(key) is not None), keys[0])


class Parts:
    """Reads contents that are lists of parts; media that they name go to the draft's lists."""

    def __init__(self, images: list[Media], videos: list[Media], leftover: Leftover) -> None:
        self.images, self.videos, self.leftover = images, videos, leftover
        self.counts = {True: 0, False: 0}
        """Images (True) and videos (False) of the parts so far."""

        self.shows = False
        """Whether a part shows an image or a video."""

    def text(self, content: list[Any]) -> str:
        """Text with tags of a turn written as a list of parts."""
        text = ""
        for part in content:
            if isinstance(part, str):
                text += part
                continue
            if not isinstance(part, dict):
                raise BadRow("format", f"a part is {type_name(part)}, not an object")
            part_type = part.get("type") or next(
                (key for key in ("text", "image", "video") if part.get(key) is not None), None
            )
            part_type = RESPONSES.get(str(part_type), part_type)
            used = named_in(part, ("text", "value"))
            if part_type == "text":
                if not isinstance(part.get(used), str):
                    raise BadRow("format", "a part of type 'text' has no text")
                text += part[used]
            elif part_type in ("image", "image_url", "video", "video_url"):
                used = named_in(part, (part_type, "url", "path", "value"))
                text += self.tag(part_type, part, part.get(used))
            elif isinstance(part_type, str) and names_sound(part_type):
                raise BadRow(
                    "modality", f"a part of type {part_type!r} is a sound, and no base here hears"
                )
            else:
                raise BadRow(
                    "format", f"a part of type {str(part_type)[:40]!r} is not text, image or video"
                )
            for key in part.keys() - {"type", "index", used}:
                if part[key] != part.get(used):
                    self.leftover.add(str(key), part[key])
        return text

    def tag(self, part_type: str, part: Mapping[str, Any], named: Any) -> str:
        """The tag of a part that shows an image or a video; its medium is noted if `named`."""
        if isinstance(named, dict) and "url" in named:
            for key in named.keys() - {"url"}:
                self.leftover.add(str(key), named[key])
            named = named["url"]
        is_image = part_type.startswith("image")
        self.shows = True
        media = self.images if is_image else self.videos
        if isinstance(part.get("index"), int) and part["index"] != self.counts[is_image]:
            raise unused("index", why="parts are shown in their own order")
        self.counts[is_image] += 1
        if named is not None:
            media.append(medium(named))
        return IMAGE if is_image else VIDEO
