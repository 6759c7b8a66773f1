"""Plain texts, and JSON values of a task's own shape."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

from gateway.parsing.answer import Answer, Item, segments, unfenced, words_item
from gateway.parsing.lenient import Block, blocks, plain

MOST_VALUES = 100
"""Most JSON values of one answer that are checked; prose may have many brackets."""


def parse_text(answer: Answer) -> tuple[Any, list[Item]]:
    """The text as it is, without a fence around it."""
    text = unfenced(answer.text)
    return text, [{"kind": "text", "text": text}] if text else []


def parse_json(answer: Answer) -> tuple[Any, list[Item]]:
    """The first JSON value that keeps to the task's schema, or else the first one."""
    parts = segments(answer.text)
    numbered = ((index, block) for index, part in enumerate(parts) for block in blocks(part))
    candidates = [
        Candidate(index, block, plain(block.value))
        for index, block in islice(numbered, MOST_VALUES)
    ]
    fitting = [each for each in candidates if answer.task.is_valid(each.value)]
    if not candidates:
        return None, words_item(answer.text)
    if len(fitting) > 1:
        answer.note("several", f"{len(fitting)} values were given; the first is taken")
    chosen = (fitting or candidates)[0]
    block = chosen.block
    if not block.value.whole:
        answer.note("cut")
    elif block.mended:
        answer.note("repaired")
    part = parts[chosen.part]
    parts[chosen.part] = part[: block.start] + part[block.end :]
    return chosen.value, [{"kind": "object", "value": chosen.value}, *words_item("\n".join(parts))]


class Candidate(NamedTuple):
    """A JSON value of an answer."""

    part: int
    """Index of the text's segment that has it."""

    block: Block
    value: Any
