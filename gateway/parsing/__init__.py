"""From what a model wrote to what a task promised: values, places in the original, and problems.

Models write anything: fences, trailing commas, Python literals, doubled braces, two blocks,
special tokens, XML, lists that a limit cut, tables without end. Every parser takes any text, never
raises, and is done within a second; what it mended or left out it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.parsing import actions, documents, events, loops, places, values
from gateway.parsing.answer import CODES, Answer, Item, Parsed, read
from gateway.tasks import Task

__all__ = ["CODES", "PARSERS", "Item", "Parsed", "parse"]

PARSERS: dict[str, Callable[[Answer], tuple[Any, list[Item]]]] = {
    "text": values.parse_text,
    "json": values.parse_json,
    "boxes": places.parse_places,
    "points": places.parse_places,
    "lines": places.parse_places,
    "html": documents.parse_html,
    "markdown": documents.parse_markdown,
    "events": events.parse_events,
    "computer_use": actions.parse_action,
    "mobile_use": actions.parse_action,
}


def parse(
    task: Task,
    text: str,
    *,
    family: str,
    finish_reason: str,
    original: tuple[int, int] | None,
    resized: tuple[int, int] | None,
) -> Parsed:
    """Read a model's answer to a task.

    `original` is the width and height in pixels of the image, upright; `resized` the same as the
    model saw it, resized, in whose pixels Qwen2.5-VL counts. Both are None for a text or a video.
    """
    answer = read(task, text, family, finish_reason, original, resized)
    if not answer.text:
        return Parsed(None, [], answer.problems)
    if loops.ends_in_loop(answer.text):
        answer.note("looped")
    value, items = PARSERS[task.parser](answer)
    if value is not None and (wrong := task.complaint(value)):
        answer.note("schema", wrong)
    return Parsed(value, items, answer.problems)
