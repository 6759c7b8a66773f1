"""Events and moments of a video, in all forms that Qwen-VL models write times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gateway.parsing.answer import MOST_ITEMS, Answer, Item, first, segments, words_item
from gateway.parsing.lenient import Block, Object, blocks, plain, well_formed

STARTS = ("start_time", "start", "start_timestamp", "begin", "from")
ENDS = ("end_time", "end", "end_timestamp", "to")
WORDS = ("description", "event", "sentence", "caption", "activity", "label", "action", "text")

TIME = r"(?:\d{1,3}:)?\d{1,3}:\d{1,2}(?:\.\d{1,6})?|\d{1,6}(?:\.\d{1,6})?"
CLOCK = re.compile(rf"\s*({TIME})\s*(?:s|sec|seconds)?\s*", re.IGNORECASE)
SPAN = re.compile(
    rf"(?<![\d.:])({TIME})\s{{0,4}}(?:s|seconds)?\s{{0,4}}(?:-|\u2013|\u2014|to|and|until)\s{{0,4}}({TIME})"
    r"(?P<unit>\s{0,4}(?:seconds|second|secs|sec|s)\b)?",
    re.IGNORECASE,
)


def parse_events(answer: Answer) -> tuple[Any, list[Item]]:
    """Spans of time in seconds with what happens in them.

    The value is a list of `start`, `end` and `description`. A sentence that names a span, as an
    answer to "when does it happen" does, is one event without a description.
    """
    items: list[Item] = []
    leftover: list[str] = []
    for segment in segments(answer.text):
        kept, end = [], 0
        for block in blocks(segment):
            before = len(items)
            for start, stop, description in rows_of(answer, block):
                add(answer, items, start, stop, description)
            if len(items) > before or block.value == [] or not block.value.whole:
                kept.append(segment[end : block.start])
                end = block.end
                note_block(answer, block)
        leftover.append("".join([*kept, segment[end:]]))
    text = "\n".join(leftover)
    if not items:
        for match in SPAN.finditer(text):
            # A number that the end cut is wrong; two plain numbers need their unit.
            if (match.end() == len(text) and answer.cut) or not is_time(match):
                continue
            add(answer, items, seconds(match.group(1)), seconds(match.group(2)), "")
    value = [{name: item[name] for name in ("start", "end", "description")} for item in items]
    return value, items + words_item(text)


def note_block(answer: Answer, block: Block) -> None:
    if not block.value.whole:
        answer.note("cut")
    elif block.mended:
        answer.note("repaired")


def is_time(match: re.Match[str]) -> bool:
    return bool(match.group("unit")) or ":" in match.group(1)


def rows_of(answer: Answer, block: Block) -> Iterator[tuple[float | None, float | None, str]]:
    """Start, end and description of the objects with times, and of keys that are spans."""
    waiting: list[Any] = [block.value]
    while waiting:
        node = waiting.pop()
        below: list[Any] = []
        if isinstance(node, Object):
            row = {well_formed(key): plain(value) for key, value in node}
            times = [first(row, names) is not None for names in (STARTS, ENDS)]
            if any(times) and not all(times) and node.whole:
                answer.note("malformed")
            if all(times):
                if node.whole:
                    words = first(row, WORDS)
                    yield (
                        seconds(first(row, STARTS)),
                        seconds(first(row, ENDS)),
                        words if isinstance(words, str) else "",
                    )
                else:
                    answer.note("cut")
                continue
            for key, value in node:
                span = SPAN.fullmatch(key.strip())
                if span is None:
                    below.append(value)
                elif isinstance(value, str):
                    yield seconds(span.group(1)), seconds(span.group(2)), well_formed(value)
        else:
            below = list(node)
        waiting += [entry for entry in reversed(below) if isinstance(entry, list)]


def seconds(written: Any) -> float | None:
    """Seconds of `hh:mm:ss.ff`, `mm:ss.ff` or a number; None for anything else."""
    if isinstance(written, int | float) and not isinstance(written, bool):
        return float(written) if 0 <= written < 1e6 else None
    match = CLOCK.fullmatch(written) if isinstance(written, str) and len(written) < 40 else None
    if match is None:
        return None
    total = 0.0
    for part in match.group(1).split(":"):
        total = total * 60 + float(part)
    return round(total, 3)


def add(
    answer: Answer, items: list[Item], start: float | None, end: float | None, description: str
) -> None:
    """Add an event with its times in order; invalid times are noted and left out."""
    if start is None or end is None:
        answer.note("malformed")
        return
    if len(items) >= MOST_ITEMS:
        answer.note("too_long", f"only the first {MOST_ITEMS:,} items were read")
        return
    if start > end:
        answer.note("reordered")
        start, end = end, start
    items.append({"kind": "event", "start": start, "end": end, "description": description})
