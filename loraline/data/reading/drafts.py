"""A row in the making, and the places of its media."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraline.data.checks import BadRow
from loraline.data.reading.contents import Media, medium
from loraline.data.reading.keys import filled, unused
from loraline.data.reading.layouts import Layout
from loraline.data.reading.values import structure
from loraline.records import IMAGE, TAGS, VIDEO, Detail

OTHER_TAGS = re.compile(r"<(image|img|video)[ _-]?\d+>|<ImageHere>|<\|(image|video)_pad\|>")
"""Places of media in other tools' texts."""

IMG = re.compile(r"<img>([^<>\n]+)</img>")
"""How Qwen-VL, the first, names an image in its text."""

NAMED = re.compile(
    r"<(img|audio)>[^<>\n]+\.\w{2,5}</(img|audio)>|<\|(AUDIO|audio_(bos|start|pad))\|>"
)
"""An image or a sound that a text of Qwen-VL or Qwen-Audio names or has a place for."""


@dataclass(slots=True)
class Draft:
    """A row in the making: turns with tags, and media that are not yet loaded."""

    format: str
    turns: list[tuple[str, str]]
    images: list[Media] = field(default_factory=list)
    videos: list[Media] = field(default_factory=list)
    group: str | None = None
    """Value of the column that keeps rows together in one split."""

    objects: Mapping[str, Any] | None = None
    """Boxes in a column of their own, for `<bbox>` placeholders."""

    details: dict[int, Detail] = field(default_factory=dict)
    """What turns hold beside their text, by their number."""

    tools: str = ""
    """JSON list of the tools that may be called."""

    used: set[str] = field(default_factory=set)
    """Columns that are in the draft."""

    listed: list[str] = field(default_factory=list)
    """Columns and keys that are filled and not used."""

    shows: bool = False
    """Whether a part of a turn shows an image or a video."""

    number: str = ""
    """The clause about an answer that is a number or a truth value; empty for a text."""

    missing: str = ""
    """The clause about a question or answer that stands for a missing value, such as nan."""


def put_first(draft: Draft, key: str, text: str) -> None:
    """Put what the column `key` says of the system before the turns.

    Raises BadRow where they begin with another system turn.
    """
    if draft.turns[0][0] != "system":
        draft.turns.insert(0, ("system", text))
        draft.details = {number + 1: detail for number, detail in draft.details.items()}
    elif draft.turns[0][1] != text:
        raise unused(key, why="the row has another system turn")


def place_tags(draft: Draft) -> None:
    """Put the tags of media before the question in formats that do not place them.

    Raises BadRow where the text has places for them that are not ours.
    """
    index = len(draft.turns) - 2
    role, text = draft.turns[index]
    if not (draft.images or draft.videos):
        return
    if match := OTHER_TAGS.search(text):
        raise BadRow("tags", f"{match.group()!r} stands for a medium; write it as {IMAGE}")
    if not any(TAGS.search(turn) for _, turn in draft.turns):
        draft.turns[index] = (role, IMAGE * len(draft.images) + VIDEO * len(draft.videos) + text)


def images_in_text(draft: Draft) -> None:
    """Images that user turns name as `<img>path</img>`, as tags and media."""
    for number, (role, text) in enumerate(draft.turns):
        if "<img>" in text and role != "user" and (match := IMG.search(text)):
            raise BadRow("tags_in_answer", f"{match.group()[:60]!r} stands in the {role} turn")
        if "<img>" in text:
            draft.images += [name.strip() for name in IMG.findall(text)]
            draft.turns[number] = (role, IMG.sub(IMAGE, text))


def refuse_named_media(draft: Draft) -> None:
    """BadRow where a question names an image or a sound that nothing shows or plays."""
    for role, text in draft.turns:
        if (
            role == "user"
            and ("<img>" in text or "<audio>" in text or "<|" in text)
            and (match := NAMED.search(text))
        ):
            raise BadRow(
                "modality", f"the user turn names {match.group()[:60]!r}, which would stay text"
            )


def add_media(draft: Draft, row: Mapping[str, Any], row_layout: Layout) -> None:
    """Media of a row's columns, one or several, into its draft."""
    if not row_layout.images and not row_layout.videos:
        return
    for names, media in ((row_layout.images, draft.images), (row_layout.videos, draft.videos)):
        for name in names:
            cell = row[name]
            if not filled(cell):
                continue
            cell = structure(cell)
            media += map(medium, cell if isinstance(cell, list | tuple) else [cell])
            draft.used.add(name)
            break
