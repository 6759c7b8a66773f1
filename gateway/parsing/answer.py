"""What every parser is given, and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from gateway.parsing.lenient import well_formed
from gateway.tasks import Task
from loraline.data import boxes
from loraline.data.boxes import Point, Size

MOST_CHARACTERS = 2**18
"""Of an answer that are read; 8,192 tokens are about 32,000 characters."""

MOST_ITEMS = 4096

Item = dict[str, Any]
"""One thing of an answer.

Its `kind` is box, point, polygon, box_3d, text, object, element, event or action. Places come as
shares (`box_unit`) and in pixels of the upright original (`box_pixels`).
"""

CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext)\|>")
"""Tokens that end an answer; they are seen when special tokens are not skipped."""

FENCE = re.compile(r"^[ \t]*```[ \t]*[\w+-]*[ \t]*$\n?|```", re.MULTILINE)


class Parsed(NamedTuple):
    """An answer as read."""

    value: Any
    """As the task's answer schema has it, places in pixels of the original; None if unreadable."""

    items: list[Item]
    problems: list[str]
    """`code: sentence`, one for each of CODES that applies; without any words of the answer."""


CODES = {
    "empty": "the model gave no answer",
    "cut": "the answer ends before its end; the unfinished last item is left out",
    "looped": "the answer ends in a repetition",
    "too_long": "only the answer's beginning was read",
    "repaired": "the answer was not in its form and was mended",
    "malformed": "something that should be an item is none and is left out",
    "clipped": "a place reached beyond the image and was cut at its edge",
    "reordered": "corners or times came in the wrong order",
    "flat": "a box without an area is left out",
    "unplaced": "the image's size is not known, so places have no pixels",
    "unsure": "a text holds quotes that may be its end",
    "refused": "the action is not one that the task allows",
    "several": "more than one answer was given; the first is taken",
    "sanitised": "active content was removed",
    "schema": "the value does not keep to the task's answer schema",
}


@dataclass
class Answer:
    """A model's text with all that is needed to read it."""

    task: Task
    text: str
    convention: str | None
    """Of coordinates, as loraline.data.boxes names them; None for a model that was taught none."""

    cut: bool
    """Whether the limit of tokens ended it."""

    original: Size | None
    """Height and width in pixels of the image, upright; None without an image."""

    resized: Size | None
    """The same after resizing, as the model saw it."""

    counted: Size | None = None
    """What coordinates count to, down and across; None where it cannot be known."""

    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, code: str, detail: str = "") -> None:
        """Remember a problem; only the first of each code is shown in full."""
        self.notes.setdefault(code, []).append(detail or CODES[code])

    @property
    def problems(self) -> list[str]:
        return [
            f"{code}: {details[0]}"
            + (f" (and {len(details) - 1} more like it)" if details[1:] else "")
            for code, details in self.notes.items()
        ]

    def place(self, point: Point) -> Point | None:
        """A point of the answer as shares of the image; None where nobody knows what it counts."""
        if self.counted is None:
            self.note("unplaced")
            return None
        return boxes.to_original(point, self.counted)

    def pixels(self, x: float, y: float) -> list[int] | None:
        """A point of shares in pixels of the original."""
        if self.original is None:
            self.note("unplaced")
            return None
        height, width = self.original
        return [round(x * width), round(y * height)]


def read(
    task: Task,
    text: str,
    family: str,
    finish_reason: str,
    original: tuple[int, int] | None,
    resized: tuple[int, int] | None,
) -> Answer:
    """The answer, ready for a parser; what holds for any answer is noted here.

    Sizes come as width and height, as Pillow has them; from here on they are height and width.
    """
    convention = family.replace("-", "_").replace(".", "_")
    answer = Answer(
        task,
        CONTROL.sub("", well_formed(text[:MOST_CHARACTERS])).strip(),
        convention if convention in boxes.CONVENTIONS else None,
        finish_reason == "length" or len(text) > MOST_CHARACTERS,
        sized(original),
        sized(resized),
    )
    answer.counted = counted(answer, task.grid.get(family))
    if len(text) > MOST_CHARACTERS:
        answer.note("too_long", f"only the first {MOST_CHARACTERS:,} characters were read")
    if not answer.text:
        answer.note("empty")
    elif answer.cut:
        answer.note("cut")
    return answer


def sized(size: tuple[int, int] | None) -> Size | None:
    return (size[1], size[0]) if size and min(size) > 0 else None


def counted(answer: Answer, grid: int | None) -> Size | None:
    """The coordinate grid; a grid that the task's prompt names overrides the family's."""
    if grid:
        return grid, grid
    if answer.convention is None or answer.convention == "qwen2_5_vl":
        return answer.resized
    return boxes.counted_to(answer.convention, (1, 1))


def segments(text: str) -> list[str]:
    """The text split at its fences; each part is read separately."""
    return [part for part in FENCE.split(text) if part.strip()]


def unfenced(text: str, *languages: str) -> str:
    """The text without the fence around all of it; fences of code within it stay.

    Where a fence names one of `languages`, it and the last one that may end it are left out, too.
    """
    marks = text.count("```")
    if text.startswith("```") and (marks == 1 or (marks == 2 and text.endswith("```"))):
        return FENCE.sub("", text).strip()
    fences = list(FENCE.finditer(text))
    names = [fence.group().strip(" \t\n`").lower() for fence in fences]
    begins = [at for at, name in enumerate(names) if name in languages]
    dropped = set(begins)
    for begin, after in pairwise([*begins, len(fences)]):
        dropped.update([at for at in range(begin + 1, after) if not names[at]][-1:])
    pieces, end = [], 0
    for at in sorted(dropped):
        pieces.append(text[end : fences[at].start()])
        end = fences[at].end()
    return "".join([*pieces, text[end:]]).strip()


def words_item(text: str) -> list[Item]:
    """The words beside the items, as a separate item."""
    words = "\n".join(line.strip() for line in text.splitlines() if line.strip())
    return [{"kind": "text", "text": words}] if words else []


def first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these fields that a row has, whatever case its name is written in."""
    lowered = {key.lower(): value for key, value in row.items()}
    return next((lowered[name] for name in names if name in lowered), None)
