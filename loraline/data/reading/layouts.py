"""Names of columns by format, and which of them a row has."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FORMATS = {
    "messages": "messages",
    "conversations": "conversations",
    "alpaca": "instruction and output",
    "prompt_completion": "prompt and completion",
    "question_answer": "question and answer",
    "pairs": "file_name or image, and text",
}
"""Names of the formats, with the keys that a row of each must have."""

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = {"instruction": "alpaca", "prompt": "prompt_completion", "query": "prompt_completion"}
QUESTION_COLUMNS = ("question", *QUESTIONS, "problem")
ANSWERS = {
    "alpaca": ("output", "response", "completion"),
    "prompt_completion": ("completion", "response", "answer", "output"),
    "question_answer": (
        "answer",
        "response",
        "output",
        "solution",
        "target",
        "targets",
        "answer_key",
        "answers",
    ),
    "pairs": ("text", "caption", "answer"),
}
IMAGES = ("images", "image", "file_name")
VIDEOS = ("videos", "video")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")

SIDES = ("input", "history", *SYSTEMS, *TOOLS, *IMAGES, *VIDEOS)

JSON_CELLS = (*CONVERSATIONS, "chosen", "rejected", "prompt", "completion", "history", "objects")
"""Columns whose text may be JSON, as a CSV file holds lists."""


class Layout(NamedTuple):
    """Columns that rows with the same keys have, by what they may hold, in our order."""

    cells: tuple[str, ...]
    conversations: tuple[str, ...]
    questions: tuple[str, ...]
    images: tuple[str, ...]
    videos: tuple[str, ...]
    systems: tuple[str, ...]
    tools: tuple[str, ...]
    sides: tuple[str, ...]
    """Columns beside question and answer, which a table may fill with `nan` where there is none."""


@functools.lru_cache(maxsize=256)
def layout(keys: tuple[Any, ...]) -> Layout:
    """The columns among some keys; rows of a set mostly have the same."""

    def present(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name in keys)

    names = (JSON_CELLS, CONVERSATIONS, QUESTION_COLUMNS, IMAGES, VIDEOS, SYSTEMS, TOOLS, SIDES)
    return Layout(*map(present, names))


def first_of(names: Sequence[str], row: Mapping[str, Any]) -> str | None:
    """The first of some columns that a row has, a filled one before an empty text."""
    second = None
    for name in names:
        value = row.get(name)
        if value is not None:
            if value != "":
                return name
            second = second or name
    return second
